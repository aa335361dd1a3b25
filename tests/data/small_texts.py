"""Small tables of texts and a tokenizer that knows their words, for tests that train on them."""

import pathlib

import numpy as np
import tokenizers

SUBJECTS = ("the sailor", "a small dog", "my old friend", "the weather", "every machine in the long hall")
GOOD = ("is wonderful", "made us happy", "works", "is a joy to see and to hear again")
BAD = ("is awful", "made us sad", "fails", "is a pain to see and to hear again")


def sentences(number: int, seed: int = 0) -> list[tuple[str, int]]:
    """Sentences with their label: 1 for good news, 0 for bad."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        label = int(rng.integers(2))
        found.append((f"{rng.choice(SUBJECTS)} {rng.choice(GOOD if label else BAD)}", label))
    return found


def write_sst2(folder: pathlib.Path, train: int = 48, dev: int = 20) -> pathlib.Path:
    """Writes a folder SST-2 in GLUE's layout."""
    folder = folder / "SST-2"
    folder.mkdir(parents=True)
    for name, number, seed in (("train", train, 0), ("dev", dev, 1)):
        rows = [f"{text} \t{label}\n" for text, label in sentences(number, seed)]
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(rows))
    return folder


def write_tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """Writes a tokenizer.json in BERT's manner: words, [CLS] in front, [SEP] behind every text."""
    words = sorted({word for part in (*SUBJECTS, *GOOD, *BAD) for word in part.split()})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=50)  # as published ones are saved; to be switched off on reading
    tokenizer.enable_truncation(5)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path
