"""The keys of `config.model`, which say what is adapted."""

from surm.machine.keys import Key, Section

MODEL = Section(
    "what is adapted",
    {
        "name": Key("auto", "The shape of the model: the name of a preset, or `auto`, which is what the weights say."),
        "weights": Key(
            "asset:vit_micro",
            "The pretrained weights: `none`, `asset:NAME` (which is shipped), a folder or a file, `hf:OWNER/NAME` (of "
            "the Hugging Face hub), or `package:NAME` (an installed Python package).",
            decision="content",
        ),
        "image_size": Key(0, "The side in pixels that images are brought to; 0 is that of the preset.", least=0),
        "pooling": Key(
            "auto",
            "What the head sees: the `class` token, the `mean` of all tokens, or `auto`: what the weights say.",
            choices=("auto", "class", "mean"),
        ),
        "dropout": Key(0.0, "The rate of dropout in the frozen model itself; of models of texts."),
        "dtype": Key(
            "float32",
            "The type to compute in and to keep frozen matrices in; what trains is always float32.",
            choices=("float32", "bfloat16"),
        ),
        "remat": Key(
            False,
            "Whether the backward pass computes every block again, which takes less memory and more time (on a CPU "
            "from jax 0.12 on).",
        ),
    },
)
