"""Folders of tokenizers as they are published, one for each way their files are put together; built small."""

import base64
import csv
import json
import pathlib
import struct
from collections.abc import Callable

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"
MADE_UP = [
    "Ça va? Déjà-vu, naïve façade; Ærøskøbing ÅNGSTRÖM İstanbul ß",
    "中文字符 mixed with English 和 café",
    "日本語のテキスト",
    "[MASK] the [SEP] <mask> </s> <e1> word</e1> NEWWORD newword's",
    "  spaces \t and\nnew lines  ",
    "🙂 emoji \u200b zero width",
    "don't can't it's 3.14 1,000 e-mail_address@x.org",
    "ALL CAPS Mixed Case",
    "Žluťoučký kůň ﬁne ½ ﬂat",
    "x" * 150,
    "\u0301a\u0308",
    "Привет мир",
    "مرحبا",
    "한국어 텍스트",
    "a<e1>b <e1> c",
    "\u00a0nbsp\u2009thin",
    "tab\tsep",
    "#hash ##hash",
    "ne\u0301e",
    "I",
]


def texts(number: int = 2000) -> list[str]:
    """Texts of CoLA, SST-2, MRPC, gsm8k and boolq in equal parts, and made-up ones; MRPC's come in pairs."""
    each = (number - len(MADE_UP)) // 5
    rows = {name: _rows(DATA / "glue" / name / "train.tsv", each + 1) for name in ("CoLA", "SST-2", "MRPC")}
    found = [row[3] for row in rows["CoLA"][:each]] + [row[0] for row in rows["SST-2"][1 : each + 1]]
    found += [text for row in rows["MRPC"][1 : each // 2 + 1] for text in row[3:5]]
    for name in ("gsm8k", "boolq"):
        with open(DATA / name / "train.jsonl", encoding="utf-8") as file:
            found += [json.loads(line)["prompt"] for line, _ in zip(file, range(each), strict=False)]
    return MADE_UP + found


def _rows(file: pathlib.Path, number: int) -> list[list[str]]:
    with open(file, encoding="utf-8-sig", newline="") as opened:
        rows = csv.reader(opened, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row, _ in zip(rows, range(number), strict=False)]


def wordpiece(corpus: list[str], *, lower: bool) -> tokenizers.Tokenizer:
    """A BERT's, with its post-processor."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lower)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        corpus, trainers.WordPieceTrainer(vocab_size=3000, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def byte_pairs(corpus: list[str]) -> tokenizers.Tokenizer:
    """A RoBERTa's."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(corpus, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return made


def unigram(corpus: list[str], special: list[str]) -> tokenizers.Tokenizer:
    """An XLM-RoBERTa's or a CamemBERT's, by its first tokens; tokenizer.json brings no post-processor."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(corpus, trainer)
    return made


def charsmap() -> bytes:
    """A table as sentencepiece's normaliser keeps them, of one entry: the letter A becomes the letter b."""
    units = [0] * 256  # a double array: at the letter's place its label, whether a value follows, and where
    units[ord("A")] = (ord("A") ^ 0x80) << 10 | 1 << 8 | ord("A")
    units[0x80] = 1 << 31  # the value: where in the texts behind the array the letter's own begins
    return struct.pack("<I256I", 4 * len(units), *units) + b"b\0"


def _normalised(saved: dict) -> dict:
    """An XLM-RoBERTa's normalisers as transformers 4 saved them; 5 keeps the first alone."""
    first = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap()).decode()}
    second = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
    return saved | {"normalizer": {"type": "Sequence", "normalizers": [first, second]}}


def decoder(**tokens: dict) -> dict[str, dict]:
    """An added_tokens_decoder: for each number a text and what differs from the usual."""
    usual = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {number.removeprefix("n"): usual | changes for number, changes in tokens.items()}


BERT_TOKENS = decoder(
    n0={"content": "[PAD]"},
    n1={"content": "[UNK]"},
    n2={"content": "[CLS]"},
    n3={"content": "[SEP]"},
    n4={"content": "[MASK]"},
)
MORE = decoder(
    n3000={"content": "<e1>"},
    n3001={"content": "newword", "special": False, "normalized": True},
    n3002={"content": "</e1>", "lstrip": True, "rstrip": True},
    n3003={"content": "Case", "special": False, "single_word": True},
)
NAMES = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
V4 = {
    "added_tokens_decoder": BERT_TOKENS,
    **NAMES,
    "clean_up_tokenization_spaces": True,
    "model_max_length": 512,
    "tokenize_chinese_chars": True,
    "strip_accents": None,
    "do_lower_case": True,
    "do_basic_tokenize": True,
    "never_split": None,
    "tokenizer_class": "BertTokenizer",
}
MASK = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}

# name -> (trained tokenizer, other files)
FOLDERS: dict[str, tuple[str, dict[str, dict]]] = {
    "bert_uncased": ("uncased", {"tokenizer_config": V4}),
    "bert_cased": ("cased", {"tokenizer_config": V4 | {"do_lower_case": False}}),
    "bert_cased_said_to_be_lower": ("cased", {"tokenizer_config": V4}),
    "bert_uncased_said_to_be_cased": ("uncased", {"tokenizer_config": V4 | {"do_lower_case": False}}),
    "bert_by_config_alone": ("cased", {"config": {"model_type": "bert"}}),
    "bert_accents": ("cased", {"tokenizer_config": V4 | {"do_lower_case": False, "strip_accents": True}}),
    "bert_lower_with_accents": ("uncased", {"tokenizer_config": V4 | {"strip_accents": False}}),
    "bert_chinese_together": ("uncased", {"tokenizer_config": V4 | {"tokenize_chinese_chars": False}}),
    "bert_more_tokens": ("uncased", {"tokenizer_config": V4 | {"added_tokens_decoder": BERT_TOKENS | MORE}}),
    "bert_additional": (
        "uncased",
        {
            "tokenizer_config": {
                **NAMES,
                "tokenizer_class": "BertTokenizerFast",
                "additional_special_tokens": ["<e1>", "</e1>"],
            }
        },
    ),
    "bert_legacy": (
        "cased",
        {
            "tokenizer_config": {"do_lower_case": False, "tokenizer_class": "BertTokenizer"},
            "special_tokens_map": NAMES | {"additional_special_tokens": ["<e1>"]},
            "added_tokens": {"newword": 3001, "<e1>": 3000},
        },
    ),
    "bert_map_wins": (
        "cased",
        {
            "tokenizer_config": NAMES | {"tokenizer_class": "BertTokenizer", "mask_token": "[M]"},
            "special_tokens_map": {"mask_token": MASK | {"content": "[MASK]"}},
        },
    ),
    "bert_own_token": ("cased", {"tokenizer_config": V4 | {"entity_token": "<e1>"}}),
    "bert_tokens_split": ("cased", {"tokenizer_config": V4 | {"split_special_tokens": True}}),
    "bert_cut_left": ("cased", {"tokenizer_config": V4 | {"truncation_side": "left"}}),
    "bert_words_of_old": (
        "cased_vocab_txt",
        {"tokenizer_config": {"do_lower_case": False, "tokenizer_class": "BertTokenizer"}},
    ),
    "bert_no_post_processor": ("cased_bare", {"tokenizer_config": V4}),
    "distilbert": (
        "uncased",
        {"tokenizer_config": {"tokenizer_class": "DistilBertTokenizer"}, "config": {"model_type": "distilbert"}},
    ),
    "fast": (
        "cased",
        {
            "tokenizer_config": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "do_lower_case": True,
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            },
            "config": {"model_type": "bert"},
        },
    ),
    "fast_without_segments": ("cased", {"tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}}),
    "fast_no_post_processor": (
        "cased_bare",
        {"tokenizer_config": NAMES | {"tokenizer_class": "PreTrainedTokenizerFast"}},
    ),
    "fast_more_tokens": (
        "cased",
        {
            "tokenizer_config": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "added_tokens_decoder": MORE,
                "extra_special_tokens": ["[E]"],
                "pad_token": "[PAD]",
            }
        },
    ),
    "roberta": (
        "bytes",
        {
            "tokenizer_config": {
                "tokenizer_class": "RobertaTokenizer",
                "add_prefix_space": False,
                "mask_token": MASK | {"__type": "AddedToken"},
            }
        },
    ),
    "roberta_space": ("bytes", {"tokenizer_config": {"add_prefix_space": True}, "config": {"model_type": "roberta"}}),
    "roberta_vocabulary": (
        "bytes_vocab_json",
        {"config": {"model_type": "roberta"}, "special_tokens_map": {"mask_token": MASK}},
    ),
    "data2vec": ("bytes", {"config": {"model_type": "data2vec-text"}}),
    "xlm_roberta": ("xlm", {"tokenizer_config": {"tokenizer_class": "XLMRobertaTokenizerFast"}}),
    "xlm_roberta_normalised": ("xlm_charsmap", {"tokenizer_config": {"tokenizer_class": "XLMRobertaTokenizer"}}),
    "xlm_roberta_no_space": (
        "xlm",
        {
            "tokenizer_config": {"add_prefix_space": False, "additional_special_tokens": ["<e1>"]},
            "config": {"model_type": "xlm-roberta"},
        },
    ),
    "camembert": ("camembert", {"config": {"model_type": "camembert"}}),
    "camembert_more": (
        "camembert",
        {"config": {"model_type": "camembert"}, "tokenizer_config": {"additional_special_tokens": ["<e1>"]}},
    ),
}


def trainers_of(corpus: list[str]) -> dict[str, Callable[[], tokenizers.Tokenizer]]:
    """What trains each tokenizer that FOLDERS names."""
    camembert = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>"]
    return {
        "uncased": lambda: wordpiece(corpus, lower=True),
        "cased": lambda: wordpiece(corpus, lower=False),
        "bytes": lambda: byte_pairs(corpus),
        "xlm": lambda: unigram(corpus, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        "camembert": lambda: unigram(corpus, camembert),
    }


def write(folder: pathlib.Path, trained: dict[str, tokenizers.Tokenizer], name: str) -> pathlib.Path:
    """Writes a folder of FOLDERS."""
    form, files = FOLDERS[name]
    tokenizer = trained[form.split("_")[0]]
    if form.endswith("vocab_txt"):
        words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")
    elif form.endswith("vocab_json"):
        tokenizer.model.save(str(folder))
    else:
        saved = json.loads(tokenizer.to_str())
        saved |= {"post_processor": None} if form.endswith("bare") else {}
        saved = _normalised(saved) if form.endswith("charsmap") else saved
        (folder / "tokenizer.json").write_text(json.dumps(saved), encoding="utf-8")
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
