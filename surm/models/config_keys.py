"""The keys of `config.model`, which describe the model that is adapted."""

from surm.machine.keys import Key, Section

MODEL = Section(
    "the model that is adapted",
    {
        "name": Key(
            "auto", "The shape of the model: the name of a preset, or `auto`, which takes it from the weights."
        ),
        "weights": Key(
            "asset:vit_micro",
            "The pretrained weights: `none`, `asset:NAME` (bundled with surm), a folder, a .safetensors or .gguf file, "
            "`hf:OWNER/NAME` or `hf:OWNER/NAME/FILE.gguf` (on the Hugging Face hub), or `package:NAME` (an installed "
            "Python package).",
            decision="content",
        ),
        "image_size": Key(
            0, "The height and width in pixels that images are resized to; 0 takes those of the model.", least=0
        ),
        "pooling": Key(
            "auto",
            "The input of the head: the `class` token, the `mean` of all tokens, or `auto`, which takes the pooling "
            "from the weights.",
            choices=("auto", "class", "mean"),
        ),
        "dropout": Key(0.0, "The dropout rate inside the frozen model, from 0 to less than 1; for encoders of texts."),
        "dtype": Key(
            "float32",
            "The dtype of computations and of frozen matrices; trained arrays are always float32.",
            choices=("float32", "bfloat16"),
        ),
        "base_dtype": Key(
            "float32",
            "The dtype in which frozen matrices are stored: `float32`, `bfloat16`, `int8` or `int4`. They are unpacked "
            "where they are used, and computations have `dtype`.",
            choices=("float32", "bfloat16", "int8", "int4"),
        ),
        "remat": Key(
            False,
            "Whether the backward pass recomputes every block, which needs less memory and more time (on a CPU only "
            "from jax 0.12 on, unless the blocks are scanned).",
        ),
        "scan": Key(
            "auto",
            "Whether the blocks of a decoder are compiled once and applied in a loop, so that the time to compile does "
            "not grow with the depth: `always`, `never`, or `auto`, for deep decoders. The result is the same up to "
            "rounding.",
            choices=("auto", "always", "never"),
        ),
    },
)
