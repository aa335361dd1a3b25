#!/bin/sh
# transformers 5.23.0 with tokenizers 0.23.3, CPU, no PyTorch.
#
# A folder holds config.json with model_type "roberta" and a tokenizer.json that is whole: a WordPiece vocabulary of
# words, with its normaliser, pre-tokenizer and post-processor. The tokenizers library encodes "hello world" with it as
# [CLS] hello world [SEP]. AutoTokenizer takes from it nothing but the vocabulary, puts that into a byte-level BPE without
# merges and without an unknown token, and so finds no token for any word: without a warning, every text becomes
# <s></s>, with two ids that lie behind the vocabulary. (tokenizer.json is used as it is where tokenizer_config.json says
# tokenizer_class "PreTrainedTokenizerFast".)
#
# Seen:
#   tokenizers          [2, 4, 5, 3]
#   AutoTokenizer       RobertaTokenizer [6, 7] ['<s>', '</s>']
#   with tokenizer_class PreTrainedTokenizerFast   [2, 4, 5, 3]
#
# Ends with status 0 as long as the words are dropped.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
"$place/venv/bin/python" - "$place" <<'PYTHON'
import json
import pathlib
import sys

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

folder = pathlib.Path(sys.argv[1]) / "model"
folder.mkdir()
words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world"])}
whole = tokenizers.Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
whole.normalizer = normalizers.BertNormalizer()
whole.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
whole.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
whole.save(str(folder / "tokenizer.json"))
(folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
right = whole.encode("hello world").ids
print("tokenizers         ", right)
opened = AutoTokenizer.from_pretrained(folder)
ids = opened("hello world")["input_ids"]
print("AutoTokenizer      ", type(opened).__name__, ids, opened.convert_ids_to_tokens(ids))
(folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
kept = AutoTokenizer.from_pretrained(folder)("hello world")["input_ids"]
print("with tokenizer_class PreTrainedTokenizerFast  ", kept)
assert right == kept == [2, 4, 5, 3]
assert ids == [6, 7], "it is no longer so"
PYTHON
