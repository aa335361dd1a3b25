"""The keys of `config.data`, which say what is read and how."""

from surm.errors import InputError
from surm.machine.keys import Key, Section

AUGMENTATIONS = ("none", "crop_flip")

DATA = Section(
    "what is read: images or texts with their labels, or texts for language models",
    {
        "source": Key(
            "digits",
            "The data: `digits` (images) or `orders` (chats), which are shipped, `tfds:NAME`, or a path: to an .npz, "
            "to a folder of images or of tables, or to one table.",
            decision="content",
        ),
        "data_dir": Key("", "The folder that TensorFlow Datasets keeps its data in.", decision="content"),
        "train_examples": Key(
            0, "The number of training examples, equally many from each class; 0 takes all there are.", least=0
        ),
        "validation_examples": Key(
            0,
            "The number of training examples that are taken out to be the validation split; 0 takes out none.",
            least=0,
        ),
        "test_examples": Key(
            0,
            "For data without a test split: the number of training examples that are taken out to be one; 0 takes out "
            "none.",
            least=0,
        ),
        "subset_seed": Key(0, "The seed by which the examples of the three keys above are drawn."),
        "eval_split": Key("test", "The split that is measured and reported.", choices=("test", "validation")),
        "augment": Key(
            "none",
            "How training images are changed at random; `crop_flip` shifts them and mirrors every second one.",
            choices=AUGMENTATIONS,
        ),
        "sampling": Key(
            "uniform",
            "How examples are drawn: `uniform` takes each once an epoch, `balanced` takes every class equally often.",
            choices=("uniform", "balanced"),
        ),
        "threads": Key(2, "The number of threads that read data.", least=1, decision="free"),
        "task": Key(
            "auto",
            "What a table of texts asks for: a task of GLUE by its name, `classification`, `regression`, `language`, "
            "or `auto`, which goes by the name of the folder and by the columns: messages, prompt and completion, or "
            "text alone are for language models.",
        ),
        "text_columns": Key(
            "sentence", "The column of a table of your own that holds the text, or two of them with a comma between."
        ),
        "label_column": Key("label", "The column of a table of your own that holds the label, of images too."),
        "image_column": Key("auto", "The column of a table that holds the image; `auto` takes the only one there is."),
        "tokenizer": Key(
            "",
            "What cuts texts into tokens: a folder, which is followed as transformers follows it, or a tokenizer.json, "
            "which is used as it stands, or a .gguf file, whose vocabulary is used. Empty is that of the weights.",
            decision="content",
        ),
        "lengths": Key(
            "16,32,64,96,128",
            "The lengths in tokens that batches of texts are filled up to. Longer texts are cut to the last of them, "
            "or to the tokenizer's model_max_length if that is less.",
        ),
        "packing": Key(
            False,
            "Whether texts for language models are packed, several in a row of the last of `lengths`; they do not see "
            "one another, and the loss is the same. A batch then has `optim.batch_size` such rows.",
        ),
        "train_on": Key(
            "answers",
            "The tokens that a language model learns: the `answers`, which are the assistant's messages, the "
            "completions, or all of a plain text; or `all` tokens. Answers alone are measured.",
            choices=("answers", "all"),
        ),
        "template_arguments": Key(
            "",
            "Further arguments of a language model's chat template, such as `enable_thinking=False`, with commas "
            "between them.",
        ),
        "generate": Key(
            False,
            "Whether every evaluation of a language model also writes the answers, and reports the share that equals "
            "the data's as `exact_match`. The most probable token is chosen each time, and white space at both ends of "
            "an answer does not count.",
        ),
        "generate_tokens": Key(
            64, "The largest number of tokens of an answer that is written for `exact_match`.", least=1
        ),
    },
)


def lengths_of(text: str) -> tuple[int, ...]:
    """The lengths in tokens listed by `config.data.lengths`, in ascending order; InputError if it lists no numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"config.data.lengths={text!r}, expected whole numbers separated by commas, as in 32,64,128")
    return tuple(sorted({int(part) for part in parts}))
