"""The architectures of GGUF files: the names of their tensors, and the layout that llama.cpp gives to some of them.

    llama.cpp                          Hugging Face
    blk.3.attn_q.weight                model.layers.3.self_attn.q_proj.weight

- Rows of q and k of the Llama kind lie in another order: each head's row i of the first half stands before row i of the
  second half. `permuted` names the architectures; for the others the order is that of Hugging Face.
- Gemma's norms multiply by 1 + w in Hugging Face, and by w in GGUF files.
- GPT-2's linear maps are (in, out) in Hugging Face, and (out, in) in GGUF files.

Source: convert_hf_to_gguf.py of llama.cpp.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from surm.errors import InputError, few
from surm.models.lazy import Stored

_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FUSED = {**_LAYER, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_FOUR_NORMS = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2_TOP = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


class Kind(NamedTuple):
    """An architecture of GGUF files.

    Attributes:
      model_type: its name in a config.json.
      layer: the names of the tensors of a block, and Hugging Face's.
      top: the names of the other tensors, and Hugging Face's.
      blocks: the name of the blocks in Hugging Face's files.
      permuted: whether rows of q and k lie in llama.cpp's order.
      shifted: whether the norms are 1 + w.
      transposed: whether the linear maps of the blocks are (in, out) in Hugging Face's files.
    """

    model_type: str
    layer: Mapping[str, str] = _LAYER
    top: Mapping[str, str] = _TOP
    blocks: str = "model.layers"
    permuted: bool = False
    shifted: bool = False
    transposed: bool = False


KINDS: dict[str, Kind] = {
    "llama": Kind("llama", permuted=True),
    "smollm3": Kind("smollm3", permuted=True),
    "qwen2": Kind("qwen2"),
    "qwen3": Kind("qwen3"),
    "gemma": Kind("gemma", shifted=True),
    "gemma2": Kind("gemma2", _FOUR_NORMS, shifted=True),
    "gemma3": Kind("gemma3_text", _FOUR_NORMS, shifted=True),
    "phi3": Kind("phi3", _FUSED),
    "gpt2": Kind("gpt2", _GPT2_LAYER, _GPT2_TOP, "transformer.h", transposed=True),
}
"""The kinds by `general.architecture`."""

APART = ("rope_freqs.weight",)
"""Tensors that belong to the config in Hugging Face's files."""


def renamed(
    where: str, kind: Kind, stored: Mapping[str, Stored], heads: int, key_value_heads: int
) -> dict[str, Stored]:
    """The tensors of a GGUF file under Hugging Face's names and in its layout; nothing is read.

    Args:
      where: the file, for messages.
      kind: its architecture.
      stored: the tensors by the file's names.
      heads: number of heads of the queries.
      key_value_heads: number of heads of the keys.

    Returns:
      The tensors by Hugging Face's names.

    Raises:
      InputError: if the file holds a tensor that such a model has not.
    """
    found, strange = {}, []
    for name, tensor in stored.items():
        if name in APART:
            continue
        theirs = _name(kind, name)
        if theirs is None:
            strange.append(name)
        else:
            found[theirs] = tensor.then(_layout(kind, name, heads, key_value_heads))
    if strange:
        raise InputError(f"{where!r} holds {few(strange, 4)}, which the {kind.model_type} that surm knows has not")
    return found


def _name(kind: Kind, name: str) -> str | None:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return None
    block, part, ending = match.groups()
    theirs = (kind.top if block is None else kind.layer).get(part)
    before = "" if block is None else f"{kind.blocks}.{block}."
    return None if theirs is None else f"{before}{theirs}.{ending}"


def _layout(kind: Kind, name: str, heads: int, key_value_heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """The change from llama.cpp's layout of a tensor to Hugging Face's."""
    if kind.permuted and ".attn_q." in name:
        return lambda rows: unpermuted(rows, heads)
    if kind.permuted and ".attn_k." in name:
        return lambda rows: unpermuted(rows, key_value_heads)
    if kind.shifted and name.endswith("norm.weight"):
        return lambda scale: scale - np.ones((), scale.dtype)
    if kind.transposed and re.fullmatch(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight", name):
        return np.transpose
    return lambda tensor: tensor


def unpermuted(rows: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k in Hugging Face's order: of each head, first one half of the rotated pairs and then the other.

    Args:
      rows: the weight (out, in) or the bias (out,) in llama.cpp's order, where the two of a pair are neighbours.
      heads: number of heads.

    Returns:
      The same rows in Hugging Face's order; unchanged if they are no whole number of pairs per head.

    Examples:
      >>> unpermuted(np.array([0, 10, 1, 11, 2, 12, 3, 13]), heads=2)
      array([ 0,  1, 10, 11,  2,  3, 12, 13])
    """
    if len(rows) % (2 * heads):
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
