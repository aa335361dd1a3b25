"""Small GGUF files for tests, written by the gguf package."""

import pathlib
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

LLAMA = {
    "block_count": 2, "context_length": 128, "embedding_length": 64, "feed_forward_length": 96,
    "attention.head_count": 4, "attention.head_count_kv": 2, "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 5000.0, "rope.dimension_count": 16, "vocab_size": 40,
}  # fmt: skip
"""The entries of a small Llama, without their prefix."""
NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(
    file: pathlib.Path, architecture: str, entries: Mapping[str, Any], tensors: Mapping[str, Any]
) -> pathlib.Path:
    """Writes a file.

    Args:
      file: its path.
      architecture: general.architecture.
      entries: the metadata; a name without a dot in front of `general` or `tokenizer` gets the architecture's prefix.
      tensors: arrays in float32 or float16, or pairs of packed bytes and their type.
    """
    writer = gguf.GGUFWriter(file, architecture)
    for name, value in entries.items():
        key = name if name.split(".")[0] in ("general", "tokenizer") else f"{architecture}.{name}"
        _add(writer, key, value)
    for name, tensor in tensors.items():
        packed, of = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, packed, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    kinds.get(type(value), writer.add_array)(key, value)


def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k in llama.cpp's order: row i of a head's first half, then row i of its second half."""
    size = len(rows) // heads
    order = [
        head * size + half * size // 2 + row for head in range(heads) for row in range(size // 2) for half in (0, 1)
    ]
    return rows[order]


def theirs(arrays: Mapping[str, np.ndarray], heads: int, key_value_heads: int) -> dict[str, np.ndarray]:
    """The arrays of a Llama in llama.cpp's names and order."""
    found = {}
    for key, array in arrays.items():
        parts = key.removeprefix("model.").rpartition(".")
        block, name = "", parts[0]
        if name.startswith("layers."):
            _, number, name = name.split(".", 2)
            block = f"blk.{number}."
        if NAMES[name] in ("attn_q", "attn_k"):
            array = permuted(array, heads if NAMES[name] == "attn_q" else key_value_heads)
        found[f"{block}{NAMES[name]}.{parts[2]}"] = array
    return found


def packed(array: np.ndarray, of: Type) -> tuple[np.ndarray, Type]:
    """An array in a type for which the gguf package has a quantiser."""
    return gguf.quantize(array, of), of


def unpacked(block: bytes, of: str) -> list[float]:
    """The numbers of one block of 32 or 256, by the loops of ggml-quants.c."""
    half = lambda place: np.float32(np.frombuffer(block, np.float16, 1, place)[0])  # noqa: E731
    if of.endswith("_K"):
        return {"Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k}[of](block, half)
    if of == "Q8_0":
        return [half(0) * np.float32(number) for number in np.frombuffer(block, np.int8, 32, 2)]
    shifted, five = of.endswith("_0"), of.startswith("Q5")
    low = 2 if shifted else 4
    high = int.from_bytes(block[low : low + 4], "little") if five else 0
    nibbles = block[low + 4 * five :]
    numbers = [byte & 15 for byte in nibbles] + [byte >> 4 for byte in nibbles]
    numbers = [number | (high >> place & 1) << 4 for place, number in enumerate(numbers)]
    if shifted:
        return [half(0) * np.float32(number - (16 if five else 8)) for number in numbers]
    return [half(0) * np.float32(number) + half(2) for number in numbers]


def _scale_and_least(scales: bytes, group: int) -> tuple[int, int]:
    if group < 4:
        return scales[group] & 63, scales[group + 4] & 63
    low, high = scales[group + 4] & 15, scales[group + 4] >> 4
    return low | scales[group - 4] >> 6 << 4, high | scales[group] >> 6 << 4


def _q4_k(block: bytes, half) -> list[float]:
    found = []
    for group in range(8):
        scale, least = (np.float32(number) for number in _scale_and_least(block[4:16], group))
        for byte in block[16 + group // 2 * 32 :][:32]:
            number = byte >> 4 if group % 2 else byte & 15
            found.append(half(0) * scale * np.float32(number) - half(2) * least)
    return found


def _q5_k(block: bytes, half) -> list[float]:
    found = []
    for group in range(8):
        scale, least = (np.float32(number) for number in _scale_and_least(block[4:16], group))
        for place, byte in enumerate(block[48 + group // 2 * 32 :][:32]):
            number = (byte >> 4 if group % 2 else byte & 15) + (block[16 + place] >> group & 1) * 16
            found.append(half(0) * scale * np.float32(number) - half(2) * least)
    return found


def _q6_k(block: bytes, half) -> list[float]:
    found, scales = np.zeros(256, np.float32), np.frombuffer(block, np.int8, 16, 192)
    for part in range(2):
        low, high = block[64 * part :], block[128 + 32 * part :]
        for place in range(32):
            for quarter in range(4):
                nibble = low[place + 32 * (quarter % 2)]
                nibble = nibble >> 4 if quarter > 1 else nibble & 15
                number = (nibble | (high[place] >> 2 * quarter & 3) << 4) - 32
                scale = half(208) * np.float32(scales[8 * part + place // 16 + 2 * quarter])
                found[128 * part + 32 * quarter + place] = scale * np.float32(number)
    return list(found)
