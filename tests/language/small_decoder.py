"""A decoder of two blocks with random weights, saved as a Hugging Face folder with a tokenizer of a few words.

The tokenizer is byte-level BPE, so every text can be encoded; each word of `WORDS` is one token with the space before
it. Its chat template has the form of SmolLM2's.
"""

import json
import pathlib

import numpy as np
import tokenizers
from flax import nnx
from safetensors.numpy import load_file, save_file

from surm.models import catalogue, decoder
from tests.models import gguf_files

WORDS = (
    "what",
    "is",
    "the",
    "capital",
    "of",
    "red",
    "green",
    "blue",
    "one",
    "two",
    "three",
    "north",
    "south",
    "a",
    "b",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + "
    "'\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer() -> tokenizers.Tokenizer:
    """Byte-level BPE: 256 bytes, the words, and three special tokens at the end."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = ["Ġ", *word]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary["".join(pair)] = len(vocabulary)
            pieces = ["".join(pair), *pieces[2:]]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    return made


def config(**changes: object) -> decoder.DecoderConfig:
    """The shape of the decoder; its table of words holds exactly the tokenizer's."""
    shape = dict(
        vocabulary=tokenizer().get_vocab_size(), width=32, depth=2, heads=4, key_value_heads=2, head_size=8,
        mlp_width=48, positions=256, tied=True, kind="llama",
    )  # fmt: skip
    return decoder.DecoderConfig(**(shape | changes))


def write(folder: pathlib.Path, *, template: str | None = TEMPLATE, seed: int = 0, **changes: object) -> pathlib.Path:
    """Writes config.json, model.safetensors, tokenizer.json and tokenizer_config.json, and returns the folder.

    Further arguments change fields of the shape, as in `depth=1`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = config(**changes)
    stated = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **catalogue.of_shape(shape).to_hf(shape)}
    (folder / "config.json").write_text(json.dumps(stated))
    save_file(_arrays(decoder.Decoder(shape, rngs=nnx.Rngs(seed))), folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[2], "bos_token": SPECIAL[1]}
    settings |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


_NAMES = {
    "embed.word.embedding": "model.embed_tokens.weight",
    "norm.scale": "model.norm.weight",
    "norm1.scale": "input_layernorm.weight",
    "norm2.scale": "post_attention_layernorm.weight",
    "attention.query.kernel": "self_attn.q_proj.weight",
    "attention.key.kernel": "self_attn.k_proj.weight",
    "attention.value.kernel": "self_attn.v_proj.weight",
    "attention.output.kernel": "self_attn.o_proj.weight",
    "mlp.gate.kernel": "mlp.gate_proj.weight",
    "mlp.up.kernel": "mlp.up_proj.weight",
    "mlp.down.kernel": "mlp.down_proj.weight",
}


def _arrays(model: decoder.Decoder) -> dict[str, np.ndarray]:
    """The arrays under the names of Hugging Face's Llama."""
    found = {}
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        own = ".".join(map(str, path))
        _, _, of_block = own.partition("blocks.")
        number, _, inner = of_block.partition(".")
        name = f"model.layers.{number}.{_NAMES[inner]}" if of_block else _NAMES[own]
        array = np.asarray(variable[...])
        found[name] = np.ascontiguousarray(array.T if own.endswith("kernel") else array)
    return found


QUESTIONS = [
    (f"what is the {what} of {where}", f"{colour} {number}")
    for what, number in (("capital", "one"), ("a", "two"), ("b", "three"))
    for where, colour in (("north", "red"), ("south", "green"), ("a", "blue"), ("b", "red green"))
]
"""Twelve questions with the answers that follow from their words."""


def write_chats(folder: pathlib.Path, *, train: int = 12, test: int = 5) -> pathlib.Path:
    """Writes train.jsonl and test.jsonl of `messages`, and returns the folder."""
    rows = [json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
            for question, answer in QUESTIONS]  # fmt: skip
    return write_rows(folder, {"train": rows[:train], "test": rows[-test:]})


def write_rows(folder: pathlib.Path, splits: dict[str, list[str]]) -> pathlib.Path:
    """Writes a file of lines for every split, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows))
    return folder


def write_gguf(folder: pathlib.Path, weights: pathlib.Path) -> pathlib.Path:
    """Writes the model of a folder from `write` as a GGUF file in another folder, and returns the file."""
    shape, opened = config(), tokenizer()
    model = json.loads(opened.to_str())["model"]
    words, ends = sorted(opened.get_vocab(), key=opened.token_to_id), {"bos": 1, "eos": 2, "unknown": 0, "padding": 0}
    number = {name: opened.token_to_id(SPECIAL[place]) for name, place in ends.items()}
    entries = {
        "block_count": shape.depth, "context_length": shape.positions, "embedding_length": shape.width,
        "feed_forward_length": shape.mlp_width, "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.key_value_heads, "attention.layer_norm_rms_epsilon": shape.epsilon,
        "rope.freq_base": 10000.0, "rope.dimension_count": shape.head_size, "vocab_size": shape.vocabulary,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": [3 if word in SPECIAL else 1 for word in words],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]], "tokenizer.chat_template": TEMPLATE,
        **{f"tokenizer.ggml.{name}_token_id": of for name, of in number.items()},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    arrays = load_file(weights / "model.safetensors")
    tensors = gguf_files.theirs(arrays, shape.heads, shape.key_value_heads)
    return gguf_files.write(folder / "model.gguf", "llama", entries, tensors)
