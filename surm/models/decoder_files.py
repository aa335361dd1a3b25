"""The files of decoders on Hugging Face, and their entry in the catalogue.

A new `model_type` is an entry of `KINDS` in the file of its family, such as `surm.models.llama_files`.
"""

import dataclasses
from typing import Any

import numpy as np
from flax import nnx

from surm.errors import InputError
from surm.machine.notes import say
from surm.models import fused, gemma_files, gpt2_files, lazy, llama_files, phi3_files
from surm.models.architecture import LANGUAGE, Architecture
from surm.models.decoder import PRESETS, Decoder
from surm.models.decoder_kind import Kind, without_output
from surm.models.decoder_shape import DecoderConfig
from surm.models.lazy import Named

KINDS: dict[str, Kind] = {**llama_files.KINDS, **gemma_files.KINDS, **phi3_files.KINDS, **gpt2_files.KINDS}
"""All kinds of decoders by `model_type`."""

_NAMED = (llama_files.TABLE, llama_files.INTERNLM2, gemma_files.TABLE, phi3_files.TABLE)
TABLES = (*_NAMED, *(without_output(table) for table in _NAMED), gpt2_files.TABLE)
"""The names of arrays in files; of two that fit, the later one is taken."""

NO_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
"""What a shape says of special tokens: nothing. A missing field would mean the kind's usual number, a wrong token."""


def _from_hf(kind: str, fields: dict[str, Any]) -> DecoderConfig:
    one = KINDS[kind]
    return dataclasses.replace(one.from_hf(fields), kind=one.written_as or kind)


def _to_hf(config: DecoderConfig) -> dict[str, Any]:
    kind = kind_of(config)
    written = KINDS[kind].to_hf(config)
    again = KINDS[kind].from_hf({**KINDS[kind].defaults, **written})
    if again != config:
        different = [name for name, value in vars(again).items() if name != "kind" and value != getattr(config, name)]
        raise InputError(f"a model of kind={kind!r} has other {', '.join(different)} in transformers; {config}")
    return written | NO_TOKENS


def kind_of(config: DecoderConfig) -> str:
    """The `model_type` of a shape: the one that it was read from, else the first one that can have such a shape."""
    if config.kind:
        return config.kind
    for kind, one in KINDS.items():
        try:
            if not one.written_as and one.from_hf({**one.defaults, **one.to_hf(config)}) == config:
                return kind
        except InputError:
            continue
    raise InputError(f"no model_type of transformers has the shape {config}")


_WORDS, _OUTPUT = "embed.word.embedding", "lm_head.kernel"


def _restored(arrays: Named, config: DecoderConfig) -> Named:
    stored = lazy.of(fused.split_maps(arrays, config)).stored
    if config.tied and _OUTPUT in stored:  # a file may hold the one table under either name, or under both
        output = stored.pop(_OUTPUT)
        stored.setdefault(_WORDS, output.then(np.transpose))
    return lazy.Arrays(stored)


def _twins(config: DecoderConfig) -> dict[str, str]:
    return {_WORDS: "lm_head.weight"} if config.tied else {}


def _untied(model: Decoder) -> Decoder:
    model = nnx.clone(model)
    words = model.embed.word.embedding[...]
    model.untie()
    model.lm_head.kernel.set_value(words.T)
    return model


def _fitted(model: Decoder, arrays: Named) -> None:
    if not model.config.tied or _WORDS not in arrays or _OUTPUT not in arrays:
        return
    if not np.array_equal(arrays[_WORDS], arrays[_OUTPUT].T):
        say("config.json says tie_word_embeddings=true, but the file holds an lm_head with other values, which is used")
        model.untie()


ARCHITECTURE = Architecture(
    name="decoder",
    reads=LANGUAGE,
    model=Decoder,
    shape=DecoderConfig,
    presets=PRESETS,
    kinds={kind: one.defaults for kind, one in KINDS.items()},
    from_hf=_from_hf,
    to_hf=_to_hf,
    kind_of=kind_of,
    tables=TABLES,
    namings={kind: one.namings for kind, one in KINDS.items()},
    classes={kind: {LANGUAGE: one.auto} for kind, one in KINDS.items()},
    obstacle=lambda config, theirs: None,
    own_code=tuple(kind for kind, one in KINDS.items() if one.own_code),
    passed_over=(
        "pretraining_tp", "pad_token_id", "is_llama_config", "rope_interleaved", "n_ctx", "embd_pdrop",
        "resid_pdrop", "attn_pdrop", "cache_implementation", "hidden_activation", "transformers.js_config",
        "summary_proj_to_labels", "summary_first_dropout", "reorder_and_upcast_attn", "_sliding_window_pattern",
        "rms_norm_eps", "attn_implementation", "unsloth_fixed", "unsloth_version",
    ),
    null_is_none=(
        "sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "num_key_value_heads", "head_dim",
    ),
    twins=_twins,
    untied=_untied,
    fitted=_fitted,
    restored=_restored,
)  # fmt: skip
