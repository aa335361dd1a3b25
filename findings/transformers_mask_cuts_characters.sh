#!/usr/bin/env bash
# transformers 5.23.0 (tokenizers 0.23.3): `return_assistant_tokens_mask` can leave the end of an answer out.
#
# The mask goes by characters: it marks the tokens up to the one that holds the answer's last character, found by
# `char_to_token`, which gives the *first* of several. Byte-level tokenizers split rare characters into several tokens,
# one for each byte or two, so an answer that ends in such a character loses the others of them: a model that is trained
# by the mask never learns to finish it. An end-of-turn token inside the marks hides this, as it is the last one then.
#
# Seen, for the user's "a" and the answer "漢" of three bytes: mask 0 1 0 0 where 0 1 1 1 is right; for "b" 0 1.
#
# Exits 0 while that is so, 1 when it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers

TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% endgeneration %}{% else %}{{ message.content }}{% endif %}{% endfor %}"
)
letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
bytewise = tokenizers.Tokenizer(models.BPE(letters, []))
bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bytewise.decoder = decoders.ByteLevel()
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise, chat_template=TEMPLATE)


def mask(answer):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)["assistant_masks"]


found = {answer: mask(answer) for answer in ("b", "漢")}
print(found)
sys.exit(found != {"b": [0, 1], "漢": [0, 1, 0, 0]})
PYTHON
