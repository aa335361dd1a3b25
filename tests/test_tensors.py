"""What is written as safetensors is what was held, whatever its layout; and nothing else in the project writes them."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from jax.experimental.layout import Format, Layout

import surm
from surm.peft import tensors
from tests.exchange.models import adapted, answer, base

ROOT = pathlib.Path(__file__).parent.parent
NUMBERS = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def column_major(array: jax.Array) -> jax.Array:
    """The same numbers, by columns in the memory of their device."""
    order = tuple(reversed(range(array.ndim)))
    return jax.device_put(array, Format(Layout(order), jax.sharding.SingleDeviceSharding(jax.devices()[0])))


LAYOUTS = {
    "in order": NUMBERS,
    "transposed": NUMBERS.transpose(2, 0, 1),
    "Fortran's": np.asfortranarray(NUMBERS),
    "by columns on its device": column_major(jnp.asarray(NUMBERS)),
    "every second, backwards": NUMBERS[:, ::-2, 1::2],
    "broadcast": np.broadcast_to(NUMBERS[:, :1], (2, 5, 4)),
    "of no axis": np.float32(3.5),
    "a view of no axis": NUMBERS[1, 2, 3, ...],
    "empty": np.zeros((0, 3), np.float32),
    "big-endian": NUMBERS.astype(">f4").T,
    "half precision": NUMBERS.astype(np.float16).T,
    "bfloat16": NUMBERS.astype(ml_dtypes.bfloat16).T,
    "bool": (NUMBERS > 5).T,
    "whole numbers": NUMBERS.astype(np.int8).T,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_array_is_written_as_it_is_held(layout):
    array = LAYOUTS[layout]
    held = safetensors.numpy.load(tensors.encoded({"a": array})) if layout != "bfloat16" else None
    if held is None:  # which that function of the library does not read
        data = tensors.encoded({"a": array})
        held = {"a": np.frombuffer(data[-array.nbytes :], ml_dtypes.bfloat16).reshape(array.shape)}
    assert held["a"].shape == np.shape(array)
    np.testing.assert_array_equal(held["a"], np.asarray(array))


def test_zeros_keep_their_sign():
    held = safetensors.numpy.load(tensors.encoded({"a": np.float32([-0.0, 0.0])}))
    assert np.signbit(held["a"]).tolist() == [True, False]


def test_without_anything_to_say_the_bytes_are_those_of_0_1_0():
    assert tensors.encoded({"b": NUMBERS, "a": NUMBERS}) == safetensors.numpy.save({"a": NUMBERS, "b": NUMBERS})


def test_the_head_holds_what_is_said():
    data = tensors.encoded({"b": NUMBERS, "a": NUMBERS}, {"format": "pt"})
    assert b'"__metadata__":{"format":"pt"}' in data[:200]
    assert data == tensors.encoded({"a": NUMBERS, "b": NUMBERS}, {"format": "pt"})


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_named(dtype, value):
    array = np.asarray([[1, value], [value, 0]], dtype)
    with pytest.raises(surm.InputError, match=r"^layer\.a holds 2 of 4 numbers that are not finite; expected none"):
        tensors.encoded({"layer.a": array, "layer.b": NUMBERS})


def test_a_dtype_that_the_format_lacks_is_named():
    with pytest.raises(surm.InputError, match=r"^arrays of complex128 cannot be written as safetensors: "):
        tensors.encoded({"a": np.zeros(2, np.complex128)})


def test_what_is_written_other_than_held_is_found():
    data = bytearray(tensors.encoded({"a": NUMBERS, "b": NUMBERS.T}))
    tensors._check_held(bytes(data), {"a": NUMBERS, "b": NUMBERS.T})
    data[-1] ^= 1
    with pytest.raises(OSError, match=r"safetensors .* wrote b other than it was given"):
        tensors._check_held(bytes(data), {"a": NUMBERS, "b": NUMBERS.T})
    with pytest.raises(OSError, match="wrote b, which was not given"):
        tensors._check_held(bytes(data), {"a": NUMBERS})
    with pytest.raises(OSError, match="wrote c other than"):
        tensors._check_held(bytes(data), {"c": NUMBERS})
    with pytest.raises(OSError, match="wrote b other than"):  # its memory, as it lay
        tensors._check_held(tensors.encoded({"b": NUMBERS}), {"b": NUMBERS.reshape(4, 3, 2)})


WRITERS = {
    "save_adapter": (lambda folder, model: surm.save_adapter(folder, model), surm.load_adapter),
    "export_peft": (lambda folder, model: surm.export_peft(folder, model), surm.import_peft),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_an_adapter_by_columns_on_its_device_answers_the_same_when_it_is_read_again(writer, tmp_path):
    write, read = WRITERS[writer]
    model = adapted(family="low_rank")
    graphdef, trained, rest = nnx.split(model, surm.Trainable, ...)
    moved = nnx.merge(graphdef, jax.tree.map(column_major, trained), rest)
    write(tmp_path, moved)
    np.testing.assert_allclose(answer(read(tmp_path, base("vit"))), answer(model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("writer", [*WRITERS, "export_merged"])
def test_a_model_that_is_not_finite_is_refused_and_nothing_is_written(writer, tmp_path):
    write = WRITERS[writer][0] if writer in WRITERS else surm.export_merged
    model = adapted(family="low_rank")
    layer = model.blocks[0].attention.query
    layer.delta.parameters["a"][...] = layer.delta.parameters["a"][...].at[0, 0].set(jnp.nan)
    with pytest.raises(surm.InputError, match=r"attention.*q.* holds \d+ of \d+ numbers that are not finite"):
        write(tmp_path / "out", model)
    assert not (tmp_path / "out").exists()


SAVERS = {"save", "save_file", "serialize", "serialize_file", "save_model", "save_pretrained"}


def calls_of_savers(file: pathlib.Path) -> list[str]:
    """What of safetensors' functions that write a file names."""
    tree = ast.parse(file.read_text())
    named = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    dotted = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return sorted(name for name in named | dotted if name.startswith("safetensors") and name.split(".")[-1] in SAVERS)


def test_only_one_module_writes_safetensors():
    files = [file for part in ("surm", "scripts", "experiments", "configs") for file in (ROOT / part).rglob("*.py")]
    assert len(files) > 50
    writing = {str(file.relative_to(ROOT)): calls for file in files if (calls := calls_of_savers(file))}
    assert writing == {"surm/peft/tensors.py": ["safetensors.numpy.save"]}
