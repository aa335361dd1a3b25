"""Shapes of published decoders, as their config.json files give them."""

import dataclasses

from surm.models.decoder_shape import DecoderConfig, Layer
from surm.models.presets import named
from surm.models.rotary import Rotary
from surm.models.rotary_scaling import Llama3Scaling


def _rotary(base: float) -> tuple[Layer, ...]:
    return (Layer(rotary=Rotary(base)),)


def _llama3(*sizes: int, factor: float, tied: bool) -> DecoderConfig:
    layers = (Layer(rotary=Rotary(500_000.0, Llama3Scaling(factor, 1.0, 4.0, 8192))),)
    return DecoderConfig(128_256, *sizes, positions=131_072, layers=layers, tied=tied, kind="llama")


def _smollm2(*sizes: int, base: float) -> DecoderConfig:
    return DecoderConfig(49_152, *sizes, positions=8192, layers=_rotary(base), tied=True, kind="llama")


def _qwen2(*sizes: int, positions: int = 131_072, tied: bool = True) -> DecoderConfig:
    biases = ("query", "key", "value")
    options = {"layers": _rotary(1e6), "epsilon": 1e-6, "tied": tied, "biases": biases, "kind": "qwen2"}
    return DecoderConfig(*sizes, positions=positions, **options)


def _qwen3(*sizes: int, tied: bool = True) -> DecoderConfig:
    options = {"layers": _rotary(1e6), "epsilon": 1e-6, "head_norms": True, "kind": "qwen3"}
    return DecoderConfig(151_936, *sizes, positions=40_960, tied=tied, **options)


_GEMMA = {
    "activation": "gelu_tanh", "epsilon": 1e-6, "tied": True, "norm_offset": 1.0, "branch_norms": True,
    "scaled_words": True, "score_size": 256,
}  # fmt: skip

PRESETS: dict[str, DecoderConfig] = {
    "smollm2_135m": _smollm2(576, 30, 9, 3, 64, 1536, base=100_000.0),
    "smollm2_360m": _smollm2(960, 32, 15, 5, 64, 2560, base=100_000.0),
    "smollm2_1_7b": _smollm2(2048, 24, 32, 32, 64, 8192, base=130_000.0),
    "llama3_2_1b": _llama3(2048, 16, 32, 8, 64, 8192, factor=32.0, tied=True),
    "llama3_2_3b": _llama3(3072, 28, 24, 8, 128, 8192, factor=32.0, tied=True),
    "llama3_1_8b": _llama3(4096, 32, 32, 8, 128, 14336, factor=8.0, tied=False),
    "qwen2_5_0_5b": _qwen2(151_936, 896, 24, 14, 2, 64, 4864, positions=32_768),
    "qwen2_5_1_5b": _qwen2(151_936, 1536, 28, 12, 2, 128, 8960),
    "qwen2_5_7b": _qwen2(152_064, 3584, 28, 28, 4, 128, 18_944, tied=False),
    "qwen3_0_6b": _qwen3(1024, 28, 16, 8, 128, 3072),
    "qwen3_1_7b": _qwen3(2048, 28, 16, 8, 128, 6144),
    "qwen3_8b": _qwen3(4096, 36, 32, 8, 128, 12_288, tied=False),
    "mistral_7b": DecoderConfig(
        32_000, 4096, 32, 32, 8, 128, 14_336, positions=32_768, layers=(Layer(4096),), kind="mistral"
    ),
    "gemma2_2b": DecoderConfig(
        256_000, 2304, 26, 8, 4, 256, 9216, positions=8192, layers=(Layer(4096), Layer()), score_cap=50.0,
        logit_cap=30.0, kind="gemma2", **_GEMMA,
    ),
    "gemma3_1b": DecoderConfig(
        262_144, 1152, 26, 4, 1, 256, 6912, positions=32_768, layers=(*[Layer(512)] * 5, *_rotary(1e6)),
        head_norms=True, kind="gemma3_text", **_GEMMA,
    ),
    "smollm3_3b": DecoderConfig(
        128_256, 2048, 36, 16, 4, 128, 11_008, positions=65_536, layers=(*_rotary(5e6) * 3, Layer(rotary=None)),
        epsilon=1e-6, tied=True, kind="smollm3",
    ),
    "phi3_mini": DecoderConfig(
        32_064, 3072, 32, 32, 32, 96, 8192, positions=4096, layers=(Layer(2047),), kind="phi3"
    ),
    "gpt2": DecoderConfig(
        50_257, 768, 12, 12, 12, 64, 3072, positions=1024, layers=(Layer(rotary=None),), activation="gelu_tanh",
        tied=True, biases=("query", "key", "value", "output", "up", "down"), gated=False, centred=True,
        learned_positions=True, kind="gpt2",
    ),
}  # fmt: skip


def preset(name: str, **changes: object) -> DecoderConfig:
    """Looks a preset up and changes some of its fields.

    Args:
      name: a key of `PRESETS`.
      **changes: fields of `DecoderConfig` to replace.

    Returns:
      The configuration.

    Raises:
      InputError: if there is no such preset; the nearest are named.

    Examples:
      >>> preset("smollm2_135m").depth
      30
    """
    return dataclasses.replace(named(name, PRESETS), **changes)
