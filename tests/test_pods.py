"""What a step takes on hardware that is not there: how it is told, and, where its compilers are, what they say."""

import dataclasses
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from surm import sweep
from surm.machine import targets
from surm.sweeps import described
from surm.training import pods
from surm.training.collectives import Moved
from surm.training.pods import Step
from tests.language import small_decoder
from tests.test_train import CONFIG, ROOT, SMALL

COMPILERS = pathlib.Path(sys.prefix) / "compilers"
DESCRIBED = ("tpu:v5e:2x4", "gpu:h100:8")
STEP = Step(
    target="tpu:v5e:2x4", device="TPU v5 lite", devices=8, hosts=1, mesh={"data": 4, "model": 2}, dtype="bfloat16",
    memory=16 * 2**30, base=2**30, trained=2**20, batch=2**10, temporary=2**31, program=2**24, in_all=3 * 2**30 + 2**25,
    fits=True, rows=512, counts="images", collectives={"all-reduce": Moved(2, 2e6)}, operations=1.97e12,
    accessed=8.19e9, compiler_accessed=4e9, compiler_seconds=0.012, unknown=3,
    bounds={"matrix products": 0.01, "memory": 0.02, "links": 0.001}, compile_seconds=12.34,
)  # fmt: skip


def test_a_step_is_told_in_aligned_lines():
    assert pods.text(STEP).splitlines() == [
        "target               tpu:v5e:2x4: 8 TPU v5 lite on 1 host (data 4, model 2), bfloat16",
        "bytes a chip         base 1.0 GiB, trained with optimiser 1.0 MiB, batch 1.0 KiB, temporary 2.0 GiB, program "
        "16.0 MiB, in all 3.0 GiB of 16.0 GiB: fits",
        "sent by a chip       2 all-reduce 1.9 MiB",
        "work of a chip       1.97 TFLOP in matrix products, 7.6 GiB read and written in its memory",
        "compiler's estimate  12 ms, 3.7 GiB (bodies of loops counted once, 3 operations of unknown time left out)",
        "roofline             20 ms a step (ms: matrix products 10, memory 20, links 1), 25,600 images a second",
        "compiled in          12.3 s",
    ]


def test_a_step_that_does_not_fit_or_only_just_is_told_so():
    nothing = dict.fromkeys(("temporary", "program", "collectives", "accessed", "compiler_seconds"))
    full = dataclasses.replace(STEP, **nothing, in_all=17 * 2**30, fits=False, bounds={"matrix products": 0.25})
    said = pods.text(full)
    assert "in all 17.0 GiB of 16.0 GiB: does not fit" in said and "sent by" not in said and "read and" not in said
    assert "250 ms a step (ms: matrix products 250), 2,048 images a second" in said
    fused = dataclasses.replace(STEP, paths={"fused": ["circulant 8×8", "circulant 8×9"], "branch": ["low_rank 8×8"]})
    assert f"paths{' ' * 16}fused for circulant 8×8, circulant 8×9; branch for low_rank 8×8\n" in pods.text(fused)
    gpu = dataclasses.replace(STEP, in_all=13 * 2**30, fits=False)
    assert "fits only if JAX may take more than the 75% of a GPU's memory" in pods.text(gpu)
    assert json.loads(json.dumps(pods.as_json(full)))["rate"] == 2048


@pytest.mark.parametrize(
    ("message", "size"),
    [
        ("Ran out of memory in memory space hbm. Used 19.85G of 15.75G hbm. Exceeded by 4.10G.", 19.85),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (16.62G) exceeds "
         "available HBM (15.75G).", 16.62),
    ],
)  # fmt: skip
def test_a_compiler_that_gives_up_for_want_of_memory_says_how_much_it_wants(message, size, monkeypatch):
    def full(_):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax.stages.Traced, "lower", full)
    given = targets.parse("tpu:v5e:2x2"), jax.jit(lambda x: x).trace(1.0)
    assert pods._compiled(*given) == (None, round(size * 2**30))
    message = "INTERNAL: of another kind"
    with pytest.raises(ValueError, match="--target=tpu:v5e:2x2: the step cannot be compiled: INTERNAL: of another"):
        pods._compiled(*given)


def test_batches_of_texts_are_described_at_their_greatest_length():
    batch = {"tokens": np.ones((2, 5), np.int32), "labels": np.ones(2), "images": np.ones((2, 5, 5))}
    found = pods._longest(batch, (8, 12))
    assert {name: value.shape for name, value in found.items()} == {
        "tokens": (2, 12), "labels": (2,), "images": (2, 5, 5)
    }  # fmt: skip
    assert pods._longest({"images": batch["images"]}, ()) == {"images": batch["images"]}


def test_a_sweep_tells_every_run_in_a_row_and_what_failed(tmp_path, monkeypatch, capsys):
    said = {"circulant": json.dumps(pods.as_json(STEP)), "toeplitz": "error: the compiler has had enough\n"}

    def ran(command, **_):
        assert "--dry_run" in command and "--target=tpu:v5e:2x4" in command and "--json" in command
        assert not any("workdir" in word for word in command)
        family = next(name for name in said if f"--config.peft.family={name}" in command)
        failed = family == "toeplitz"
        texts = ("", said[family]) if failed else (f"told before\n{said[family]}\n", "")
        return subprocess.CompletedProcess(command, 2 if failed else 0, *texts)

    monkeypatch.setattr(described.subprocess, "run", ran)
    monkeypatch.setattr(targets, "devices_of", lambda target: ())
    monkeypatch.setattr(targets, "only_described", lambda: None)
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.py"
    file.write_text(f"import runpy\nget_config = runpy.run_path({CONFIG!r})['get_config']\n"
                    "def sweep():\n    return [{'peft.family': 'circulant'}, {'peft.family': 'toeplitz'}]")  # fmt: skip
    assert sweep.main(["surm.sweep", f"--config={file}", "--dry_run", "--target=tpu:v5e:2x4"]) == 1
    out, err = capsys.readouterr()
    assert [re.split(r"  +", line) for line in out.splitlines()] == [
        ["family", "fits", "GiB a chip", "ms a step", "a second", "counts", "sent MB", "compiled in s"],
        ["circulant", "yes", "3.03", "20", "25,600", "images", "2.0", "12"],
        ["toeplitz", "-", "-", "-", "-", "-", "-", "-"],
    ]
    assert err.splitlines()[-1] == "failed: family=toeplitz: the compiler has had enough"
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {file.name}


def compiled(target: str, *more: str, module: str = "surm.train") -> subprocess.CompletedProcess:
    """Runs a command with the compilers on the path; skips the test if they are missing or for another jax."""
    jax_of = [name for name in COMPILERS.glob("jax_cuda12_plugin-*.dist-info")]
    if not jax_of:
        pytest.skip("no compilers for TPUs and GPUs beside this Python; `make slow` installs tests/compilers.txt")
    if f"-{importlib.metadata.version('jaxlib')}." not in jax_of[0].name:
        pytest.skip(f"tests/compilers.txt is for another jaxlib than {importlib.metadata.version('jaxlib')}")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, COMPILERS)))}
    command = [sys.executable, "-m", module, "--dry_run", f"--target={target}", *more]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)


def figures(target: str, *more: str) -> dict:
    done = compiled(target, "--json", *more)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


OF_TWO_BLOCKS = [f"--config={CONFIG}", f"--config.model.weights={SMALL}", "--config.model.image_size=16"]
IN_PARTS = ["--config.mesh.data=4", "--config.mesh.model=2", "--config.mesh.shard_base=True"]


@pytest.mark.slow
@pytest.mark.parametrize("target", DESCRIBED)
def test_a_step_in_parts_brings_no_activations_together(target):
    given = [f"--config={CONFIG}"]
    step = figures(target, *given, *IN_PARTS)
    assert (step["devices"], step["hosts"], step["mesh"]) == (8, 1, {"data": 4, "model": 2})
    assert step["fits"] and 0 < step["seconds"] < 1e-3 and step["counts"] == "images" and step["rows"] == 32
    sent = {kind: one["size"] for kind, one in step["collectives"].items()}
    assert {*sent} == {"all-gather", "all-reduce"}
    trained = step["trained"] / 3  # with two moments
    assert sent["all-reduce"] <= 2 * trained  # the gradients of the trained arrays, and nothing of a kernel's size
    whole = figures(target, *given)
    assert step["base"] < 0.3 * whole["base"] and whole["mesh"] == {"data": 8, "model": 1}
    assert sent["all-gather"] <= 2 * whole["base"]  # every kernel once in each direction; vectors are everywhere
    assert {*whole["collectives"]} == {"all-reduce"}


@pytest.mark.slow
@pytest.mark.parametrize("target", [*DESCRIBED, "tpu:v4:2x2x1", "tpu:v5p:2x2x1", "tpu:v6e:4x4", "gpu:a100:4x2"])
def test_every_kind_of_chip_can_be_compiled_for(target):
    done = compiled(target, *OF_TWO_BLOCKS)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    said = told[[line.split()[0] for line in told].index("target") :]
    hosts = {"tpu:v6e:4x4": "16 TPU v6 lite on 4 hosts", "gpu:a100:4x2": "8 NVIDIA A100-SXM4-80GB on 2 hosts",
             "tpu:v4:2x2x1": "4 TPU v4 on 1 host"}  # fmt: skip
    assert hosts.get(target, "on 1 host") in said[0]
    assert said[1].endswith(": fits") and said[-1].startswith("compiled in")
    (of_paths,) = (line for line in said if line.startswith("paths"))
    assert re.match(r"paths +branch_dense for circulant \d+×\d+ with [\d,]+ vectors in float32$", of_paths), of_paths
    assert any(line.startswith("compiler's estimate") for line in said) == target.startswith("tpu")


@pytest.mark.slow
def test_the_numbers_that_a_tpu_trains_are_those_of_this_machine(tmp_path):
    """And so are the operations, which are counted before a compiler changes anything."""
    alone = figures("tpu:v5e:1x1", f"--config={CONFIG}")
    command = [sys.executable, "-m", "surm.train", "--dry_run", f"--config={CONFIG}"]
    here = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout
    kibibytes = float(re.search(r"trained with optimiser ([\d.]+) KiB", here)[1])
    assert alone["trained"] / 1024 == pytest.approx(kibibytes, abs=0.1)
    counted = float(re.search(r"operations ([\d.]+) GFLOP", here)[1])
    assert alone["operations"] / 1e9 == pytest.approx(counted, rel=0.25)
    assert alone["devices"] == 1 and alone["collectives"] == {}


@pytest.mark.slow
def test_a_language_model_that_nobody_could_hold_is_only_described(tmp_path):
    weights, chats = small_decoder.write(tmp_path / "weights"), small_decoder.write_chats(tmp_path / "chats")
    given = [f"--config={ROOT / 'configs' / 'lm_text.py'}:data={chats}", "--config.model.weights=none",
             "--config.model.name=llama3_2_1b", f"--config.data.tokenizer={weights}", "--config.data.lengths=48",
             "--config.data.generate=False", "--config.peft.family=low_rank", "--config.peft.targets=.*query",
             "--config.model.dtype=bfloat16", "--config.model.base_dtype=bfloat16"]  # fmt: skip
    step = figures("gpu:h100:8", *given, "--config.optim.batch_size=8", "--config.mesh.shard_base=True")
    assert step["counts"] == "tokens" and step["rows"] == 8 * 48
    assert 2.4e9 / 8 < step["base"] < 2.6e9 / 8
    assert {*step["collectives"]} <= {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.slow
def test_a_population_and_several_hosts_are_described_too():
    many = [*OF_TWO_BLOCKS, "--config.population=seed=0|1,learning_rate=8e-3|2e-2"]
    step = figures("gpu:h100:4x2", *many, "--config.mesh.shard_members=True", "--config.mesh.data=4",
                   "--config.mesh.model=2")  # fmt: skip
    assert (step["devices"], step["hosts"]) == (8, 2) and "links" not in step["bounds"]


@pytest.mark.slow
def test_members_on_all_devices_send_the_gradients_of_what_trains_too():
    half = [f"--config={CONFIG}", "--config.model.dtype=bfloat16", "--config.population=seed=0|1"]
    step = figures("gpu:h100:8", *half)
    assert {*step["collectives"]} == {"all-reduce"}
    assert step["collectives"]["all-reduce"]["size"] <= 2 * step["trained"] / 3  # AdamW keeps two moments


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("tpu:v5e:3x3", [], 'refuses it: INVALID_ARGUMENT: Topology layout "v5e:3x3" is not divisible by'),
        ("tpu:v5e:4x4", ["--config.optim.batch_size=8"], "config.optim.batch_size=8 does not divide among config.mesh"),
        ("gpu:h100:8", ["--config.mesh.data=3"], "config.mesh.data=3 and config.mesh.model=1 do not take the 8"),
        ("gpu:h100:4x2", ["--config.mesh.data=1", "--config.mesh.model=8"], "reaches over processes of 4 devices each"),
    ],
)
def test_what_a_target_cannot_do_is_refused_in_one_line(target, more, message):
    done = compiled(target, *OF_TWO_BLOCKS, *more)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and message in said[0]


@pytest.mark.slow
def test_a_description_that_a_plugin_does_not_take_is_refused(tmp_path):
    """As that of a later card may not be taken by an older jaxlib."""
    program = (
        "from surm.machine import targets; targets._gpu = (lambda make: lambda target: make(target) | "
        "{'target_config': 'no_such_field: 1'})(targets._gpu); "
        "import sys; from surm import train; sys.exit(train.main(['x', *sys.argv[1:]]))"
    )
    compiled("gpu:h100:1", "--version")  # skips without compilers
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, COMPILERS)))}
    command = [sys.executable, "-c", program, *OF_TWO_BLOCKS, "--dry_run", "--target=gpu:h100:1"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(said) == 1 and "the compiler for GPUs of jaxlib" in said[0], done.stderr


@pytest.mark.slow
def test_a_sweep_compiles_every_run():
    given = [f"--config.model.weights={SMALL}", "--config.model.image_size=16", "--config.optim.batch_size=8"]
    done = compiled("gpu:h100:8", f"--config={CONFIG}", *given, module="surm.sweep")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split()[:4] == ["family", "learning_rate", "seed", "fits"] and len(rows) == 6
    assert all(row.split()[3] == "yes" for row in rows)
