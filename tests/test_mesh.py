"""The same run on one device and on eight virtual ones: the same curve, and nothing brought together but gradients."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import jaxtyping
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from surm import config as configs
from surm import train
from surm.cli import command_line
from surm.data.share import WHOLE, Share
from surm.errors import InputError
from surm.machine import mesh as meshes
from surm.peft import surgery
from surm.training import collectives, hlo, loop, optim, placing, program, step
from surm.training.preparation import prepare
from tests.language import small_decoder
from tests.test_train import CIFAR, CONFIG, ROOT, SMALL, lines, result

several_devices = pytest.mark.skipif(jax.device_count() != 8, reason="runs in the process of the last test")
ONE_DEVICE = "SURM_RUNS_ON_ONE_DEVICE"
QUICK = [
    f"--config={CONFIG}",
    "--config.optim.batch_size=16",
    "--config.data.train_examples=72",  # the last batch of a pass is half empty
    "--config.log_every_steps=1",
    "--config.optim.steps=4",
    "--config.eval_every_steps=2",
]
OF_TWO_BLOCKS = [*QUICK, f"--config.model.weights={SMALL}", "--config.model.image_size=16"]
LANGUAGE = [  # twelve chats, so that some devices have empty rows only
    f"--config={ROOT / 'configs' / 'lm_text.py'}:data=MATERIAL/chats,family=low_rank",
    "--config.model.weights=MATERIAL/weights",
    "--config.data.lengths=48",
    "--config.optim.batch_size=16",
    "--config.optim.accumulation_steps=2",
    "--config.peft.targets=.*query",
    "--config.log_every_steps=1",
    "--config.optim.epochs=2",
]
POPULATION = "--config.population=seed=0|1,learning_rate=8e-3|2e-2,scale=0.5|1.0"
RUNS = {
    "images": (
        [*OF_TWO_BLOCKS, "--config.optim.accumulation_steps=2", "--config.optim.class_weights=1,2,3,4,5,6,7,8,9,10"],
        ["data=-1"],
        ["data=4 model=2", "data=2 model=4 shard_base=True"],
    ),
    "population": ([*OF_TWO_BLOCKS, POPULATION], [], ["data=8 shard_members=True", "data=8"]),
    "language": (LANGUAGE, ["data=-1"], ["data=4 model=2 shard_base=True"]),
    "scanned": (
        [*LANGUAGE, "--config.model.weights=MATERIAL/two_blocks", "--config.model.scan=always"],
        [],
        ["data=4 model=2 shard_base=True"],
    ),
    "dense": (
        [*QUICK, "--config.peft.path=branch_dense", "--config.peft.dropout=0.0"],
        [],
        ["data=8", "data=4 model=2 shard_base=True"],
    ),
    "packed": ([*LANGUAGE, "--config.data.packing=True", "--config.data.lengths=72"], [], ["data=-1"]),
}
if CIFAR.is_file():
    RUNS["cifar"] = ([
        f"--config={ROOT / 'configs' / 'vit_cifar.py'}", f"--config.data.source={CIFAR}", "--config.optim.steps=20",
        "--config.model.weights=asset:vit_micro", "--config.data.train_examples=1280", "--config.log_every_steps=1",
        "--config.eval_every_steps=10",
    ], [], ["data=8", "data=4 model=2"])  # fmt: skip
CASES = [
    pytest.param(name, flags, marks=[pytest.mark.slow] if flags in slow else [])
    for name, (_, quick, slow) in RUNS.items()
    for flags in (*quick, *slow)
]


def arguments_of(name: str, material: pathlib.Path) -> list[str]:
    """The flags of one of the runs; `material` is where the last test puts the files of language models."""
    return [flag.replace("MATERIAL", str(material / "material")) for flag in RUNS[name][0]]


def flags_of(mesh: str) -> list[str]:
    return [f"--config.mesh.{flag}" for flag in mesh.split()]


def members(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((folder / "members").iterdir()) if (folder / "members").exists() else [folder]


@several_devices
@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_the_curve_is_that_of_one_device(name, mesh, tmp_path):
    alone = pathlib.Path(os.environ[ONE_DEVICE]) / name
    flags = [*arguments_of(name, alone.parent), *flags_of(mesh)]
    assert train.main(["surm.train", *flags, f"--workdir={tmp_path / 'run'}"]) == 0
    assert result(tmp_path / "run")["versions"]["device"].startswith("8 ")
    for folder, expected in zip(members(tmp_path / "run"), members(alone), strict=True):
        for one, other in zip(lines(folder), lines(expected), strict=True):
            assert (one["step"], one["split"]) == (other["step"], other["split"])
            for key, value in one["values"].items():
                assert value == pytest.approx(other["values"][key], rel=2e-4, abs=1e-6), (key, one)


@pytest.mark.slow
@several_devices
def test_stopped_on_a_mesh_it_goes_on_there_exactly(tmp_path, monkeypatch, capsys):
    more = [*QUICK, *flags_of("data=4 model=2 shard_base=True"), "--config.checkpoint_every_steps=1"]
    assert train.main(["surm.train", *more, f"--workdir={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patched:
        patched.setattr(loop.Loop, "evaluate", lambda self, step: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert train.main(["surm.train", *more, f"--workdir={tmp_path / 'cut'}"]) == 130
    assert train.main(["surm.train", *more, f"--workdir={tmp_path / 'cut'}"]) == 0
    assert "going on after step 1, from" in capsys.readouterr().out
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")


@several_devices
@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("circulant", "auto"),
        ("circulant", "branch"),
        *(
            pytest.param(family, path, marks=pytest.mark.slow)
            for family in ("toeplitz", "kronecker", "low_displacement_rank", "low_rank")
            for path in ("auto", "branch")
        ),
    ],
)
def test_no_activation_is_brought_together(family, path):
    given = [*QUICK, f"--config.peft.family={family}", f"--config.peft.path={path}", "--workdir=x",
             "--config.peft.dropout=0.0"]  # fmt: skip
    run = prepare(command_line.parse(["x", *given]).config)
    mesh = meshes.mesh_of(run.config)
    numbers = optim.hyperparameters(run.config.optim, configs.spec(run.config), run.total_steps)
    state = step.initial_state(run, 0, averaged=False)
    frozen, batch = surgery.split(run.model)[2], next(run.training_batches(0))
    with jax.set_mesh(mesh):
        one = jax.jit(step.train_step(run), out_shardings=meshes.replicated(mesh))
        placed = [*meshes.put_everywhere(mesh, (state, numbers)), meshes.put_base(mesh, frozen, sharded=False)]
        compiled = one.lower(placed[0], placed[2], meshes.put_batch(mesh, batch), placed[1]).compile()
    program = compiled.as_text()
    assert "all-reduce" in program
    assert not re.search(r"all-gather|all-to-all|collective-permute", program)


@pytest.mark.slow
@several_devices
@pytest.mark.parametrize("flags", ["data=4 model=2 shard_base=True", "data=8"])
def test_gradients_of_trained_arrays_are_added_up_and_frozen_ones_are_gathered(flags):
    """Through the dense form of an update XLA would add up gradients of kernels, and with a base in parts it would
    bring activations together."""
    given = [*QUICK, "--config.peft.path=branch_dense", "--workdir=x", *flags_of(flags)]
    run = prepare(command_line.parse(["x", *given]).config)
    mesh, sharded = meshes.mesh_of(run.config), run.config.mesh.shard_base
    with jax.set_mesh(mesh):
        one = program.of_run(run, mesh)
        frozen = placing.placed(run, mesh)
        text = one.trace(one.initial(), frozen, next(one.batches)).lower().compile().as_text()
    found = collectives.every(hlo.parse(text), 8)

    def size(kind: str) -> int:
        each = [(one.times, hlo.arrays(one.result)) for one in found if one.kind == kind]
        return sum(times * array.size for times, arrays in each for array in arrays)

    trained = sum(value.nbytes for value in surgery.split(run.model)[1].values())
    base = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen) if leaf.ndim > 1)
    assert {one.kind for one in found} == ({"all-reduce", "all-gather"} if sharded else {"all-reduce"})
    assert trained <= size("all-reduce") <= trained + 64  # and the sums of losses
    assert size("all-gather") <= 2 * base * sharded
    assert not any("[16," in one.result for one in found)  # the rows of the batch


@several_devices
def test_a_base_in_parts_takes_an_eighth_on_every_device():
    config = command_line.parse(["x", *QUICK, "--workdir=x", *flags_of("data=2 model=4")]).config
    mesh, frozen = meshes.mesh_of(config), surgery.split(prepare(config).model)[2]
    placed = meshes.put_base(mesh, frozen, sharded=True)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(frozen) if leaf.ndim)
    own = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(placed) if leaf.ndim)
    assert own < 0.2 * size  # vectors are everywhere
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(placed), strict=True):
        if one.ndim:
            np.testing.assert_array_equal(one, other)


@several_devices
def test_a_share_of_one_process_is_the_whole():
    config = command_line.parse(["x", *QUICK, "--workdir=x"]).config
    assert placing.share_of(meshes.mesh_of(config)) == WHOLE


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh goes by."""

    id: int
    process_index: int


@pytest.mark.parametrize(("model", "rows"), [(1, 4), (2, 2), (4, 1)])
def test_devices_that_are_wired_otherwise_stand_process_by_process(model, rows, monkeypatch):
    """As on a slice of four hosts: JAX lists the devices by the wiring, which goes to and fro between the hosts."""
    wired = [Device(number, number % 4) for number in range(16)]
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # these are no devices
    config = command_line.parse(["x", *QUICK, "--workdir=x", f"--config.mesh.model={model}"]).config
    monkeypatch.setattr(jax, "devices", lambda: wired)
    monkeypatch.setattr(jax, "device_count", lambda: 16)
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    monkeypatch.setattr(jax, "process_index", lambda: 2)
    monkeypatch.setattr(meshes, "Mesh", lambda devices, axes, axis_types: SimpleNamespace(
        devices=devices, shape=dict(zip(axes, devices.shape, strict=True))))  # fmt: skip
    mesh = meshes.mesh_of(config)
    assert [{device.process_index for device in row} for row in mesh.devices] == [
        {row // rows} for row in range(4 * rows)
    ]
    assert placing.share_of(mesh) == Share(2, 4)


REFUSED = [
    ("data=3", "config.mesh.data=3 and config.mesh.model=1 do not take the {} devices"),
    ("data=16", "do not take the {} devices"),
    ("data=-1 model=-1", "do not take the {} devices"),
    ("data=0", "config.mesh.data=0, expected at least 1, or -1 for all that are left"),
    ("model=-2", "config.mesh.model=-2, expected at least 1"),
]


@pytest.mark.parametrize(("mesh", "message"), REFUSED)
def test_a_mesh_that_does_not_fit_is_refused_in_one_line(mesh, message, tmp_path, capsys):
    assert train.main(["surm.train", *QUICK, *flags_of(mesh), f"--workdir={tmp_path / 'run'}"]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert message.format(jax.device_count()) in said
    assert not (tmp_path / "run").exists()


@several_devices
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--config.optim.batch_size=12"], "batch_size=12 does not divide among config.mesh.data=8 devices"),
        (["--config.optim.accumulation_steps=4"], "in 4 parts .*; expected a multiple of 32"),
        (["--config.population=seed=0|1", "--config.mesh.shard_members=True"], "2 members do not divide among"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(more, message, tmp_path, capsys):
    assert train.main(["surm.train", *QUICK, *more, f"--workdir={tmp_path / 'run'}"]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_each_part_of_a_batch_divides_among_the_devices():
    config = command_line.parse(["x", *QUICK, "--workdir=x", "--config.optim.accumulation_steps=3"]).config
    with pytest.raises(
        InputError, match=r"batch_size=16 in 3 parts \(config.optim.accumulation_steps\) does not divide"
    ):
        meshes.mesh_of(config)


def test_parts_are_of_the_longest_axis_that_divides():
    assert meshes._parts((768, 3072), 8) == PartitionSpec(None, ("data", "model"))
    assert meshes._parts((30522, 768), 8) == PartitionSpec(None, ("data", "model"))
    assert meshes._parts((7, 100_001), 8) == PartitionSpec()
    assert meshes._parts((768,), 8) == PartitionSpec()


def test_members_over_devices_need_a_population(tmp_path):
    config = command_line.parse(["x", *QUICK, "--workdir=x", "--config.mesh.shard_members=True"]).config
    with pytest.raises(InputError, match="config.mesh.shard_members is set, but config.population is empty"):
        configs.check(config)


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_eight_virtual_devices(tmp_path, chosen):
    if jax.device_count() == 8:
        pytest.skip("eight devices are here already")
    for name, depth in {"weights": 1, "two_blocks": 2}.items():
        small_decoder.write(tmp_path / "material" / name, depth=depth)
    small_decoder.write_chats(tmp_path / "material" / "chats")
    for name, (_, quick, slow) in RUNS.items():
        if not (quick if chosen == "not slow" else slow):
            continue
        assert train.main(["surm.train", *arguments_of(name, tmp_path), f"--workdir={tmp_path / name}"]) == 0
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    devices = {"XLA_FLAGS": flags, ONE_DEVICE: str(tmp_path)}
    here = pathlib.Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", chosen, str(here)]
    ran = subprocess.run(command, env=os.environ | devices, cwd=here.parents[1], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"[1-9]\d* passed", ran.stdout)
