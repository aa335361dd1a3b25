#!/bin/sh
# transformers 5.23.0 with tokenizers 0.23.3, CPU, no PyTorch.
#
# added_tokens_decoder in tokenizer_config.json is a table of numbers: {"8": {"content": "<e1>", ...}}. The numbers are
# only an order. A fast tokenizer appends the tokens behind the vocabulary: with six words <e1> becomes 6, not 8, and no
# warning is given, so the token reads another row of the word table than the file says (a table with rows to spare, of
# a vocabulary with reserved places, or trained with a tokenizer of another number of words). added_tokens.json, where
# the numbers stand as values, is read in the same way. Saved again, the file says 6.
#
# Seen:
#   added_tokens_decoder says 8   the token is 6
#   added_tokens.json says 8      the token is 6
#
# Ends with status 0 as long as the numbers are passed over.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q transformers==5.23.0 tokenizers==0.23.3
"$place/venv/bin/python" - "$place" <<'PYTHON'
import json
import pathlib
import sys

from transformers import AutoTokenizer

folder = pathlib.Path(sys.argv[1]) / "model"
folder.mkdir()
(folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"]) + "\n")
settings = folder / "tokenizer_config.json"
token = {"content": "<e1>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
settings.write_text(json.dumps({"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"8": token}}))
first = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<e1>")
print("added_tokens_decoder says 8   the token is", first)
settings.write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
(folder / "added_tokens.json").write_text(json.dumps({"<e1>": 8}))
second = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<e1>")
print("added_tokens.json says 8      the token is", second)
assert (first, second) == (6, 6), "it is no longer so"
PYTHON
