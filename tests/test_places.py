"""Places in object stores, against servers that listen on this machine: as on a disk, and no less safe."""

import json
import os
import pathlib
import threading
import time
import uuid

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

import surm
from surm import files, train
from surm.config import default
from surm.models.weights import open_weights
from surm.peft import store, surgery
from surm.report import inspection
from surm.report.__main__ import main as report_main
from surm.report.collect import collect
from surm.rundir import locks, writers
from surm.rundir.workdir import Workdir
from tests import stores
from tests.exchange.models import adapted, answer, base, noisy
from tests.test_named_paths import WEIGHTS
from tests.test_train import arguments


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
    """A store's address; every test that asks for a place there gets another one."""
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    with stores.serving(request.param) as environment, stores.environment(environment | offline):
        yield f"{request.param}://{stores.BUCKET}"


@pytest.fixture
def place(bucket):
    return f"{bucket}/{uuid.uuid4().hex}"


def values(workdir) -> list[tuple]:
    text = (files.path(workdir) / "metrics.jsonl").read_text()
    return [(line["step"], line["split"], line["values"]) for line in map(json.loads, text.splitlines())]


def test_what_is_written_is_there_whole_and_listed_at_once(place):
    folder = files.made_folder(place)
    assert not folder.exists()
    files.replace(folder / "a" / "one.txt", "één")
    files.replace(folder / "two.bin", b"\x00" * 7_000_000)
    assert (folder / "a" / "one.txt").read_text() == "één" and (folder / "two.bin").read_bytes() == b"\x00" * 7_000_000
    assert sorted(each.name for each in folder.iterdir()) == ["a", "two.bin"]
    assert {*files.below(folder)} == {folder / "a" / "one.txt", folder / "two.bin"}
    assert folder.is_dir() and (folder / "a").is_dir() and (folder / "two.bin").is_file()
    files.replace(folder / "two.bin", b"new")
    assert (folder / "two.bin").read_bytes() == b"new"
    (folder / "two.bin").unlink()
    assert not (folder / "two.bin").exists() and [each.name for each in folder.iterdir()] == ["a"]


def test_a_copy_here_holds_what_a_store_holds(place):
    folder = files.path(place)
    files.replace(folder / "a" / "one.txt", "1")
    here = files.local(folder)
    assert isinstance(here, pathlib.Path) and (here / "a" / "one.txt").read_text() == "1"
    assert files.local(folder / "a" / "one.txt").read_text() == "1"
    files.replace(folder / "a" / "one.txt", "2")  # an adapter that was saved again, say
    assert (files.local(folder) / "a" / "one.txt").read_text() == "2"


MORE = ["--config.optim.steps=4", "--config.checkpoint_every_steps=2", "--config.writers=tensorboard,wandb"]


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The folder of a run on this machine's disk."""
    folder = tmp_path_factory.mktemp("local") / "run"
    assert train.main(arguments(folder, *MORE)) == 0
    return folder


def test_a_run_in_a_store_is_the_run_on_a_disk(place, local, capsys):
    assert train.main(arguments(f"{place}/run", *MORE)) == 0
    run = files.path(place) / "run"
    assert values(run) == values(local)
    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (local / name).read_bytes()
    assert {each.name for each in run.iterdir()} == {each.name for each in local.iterdir()}
    assert any(each.name.startswith("events") for each in (run / "tensorboard").iterdir())
    (sent,) = [file for file in files.below(run / "wandb") if file.name.endswith(".wandb")]
    assert writers.is_whole(files.local(sent))
    images = np.zeros((2, 8, 8, 1), np.uint8)
    assert np.array_equal(surm.load_run(str(run)).predict(images), surm.load_run(local).predict(images))
    kept = [surm.load_run(str(folder), step=2).predict(images) for folder in (run, local)]
    assert np.array_equal(*kept) and not np.array_equal(kept[0], surm.load_run(local).predict(images))
    assert train.main(arguments(f"{place}/run", *MORE)) == 0  # not trained again
    assert "holds the finished run" in capsys.readouterr().out
    assert report_main([str(run), str(local), "--out", f"{place}/report"]) == 0
    assert "accuracy" in (files.path(place) / "report" / "index.html").read_text()
    assert train.main(arguments(f"{place}/run", *MORE, "--config.seed=5")) == 2
    assert "seed: 0 against 5" in capsys.readouterr().err


def test_another_run_is_kept_out_while_one_is_in(place):
    first, second = Workdir(place, default()), Workdir(place, default())
    with first.claimed():
        for act in (second.refuse_if_busy, second.claimed().__enter__):
            with pytest.raises(surm.InputError, match=rf"another run, process {os.getpid()} on .*, is in it"):
                act()
    second.refuse_if_busy()
    with second.claimed():
        pass


def test_of_many_that_come_together_one_at_most_is_in(place):
    inside, most, refused = [], [], []

    def come():
        try:
            with Workdir(place, default()).claimed():
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.3)
                inside.pop()
        except surm.InputError:
            refused.append(1)

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most and {*most} == {1} and len(most) + len(refused) == 4


def flag(place, **owner) -> None:
    """Of a run on another machine, unless said otherwise."""
    owner = {"host": "far", "machine": "far", "process": 1, "began": "1", "holds": True, "beats": 1} | owner
    files.replace(files.path(place) / ".lock" / "of-another", json.dumps(owner))


def test_a_flag_of_another_machine_keeps_out_while_it_is_renewed(place, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    flag(place)
    threading.Timer(0.3, lambda: flag(place, beats=2)).start()
    with pytest.raises(surm.InputError, match="another run, process 1 on far, is in it"):
        Workdir(place, default()).refuse_if_busy()


def test_a_flag_that_is_silent_is_nobodys(place, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    monkeypatch.setattr(locks, "SILENCE", 0.4)
    flag(place)
    began = time.monotonic()
    with Workdir(place, default()).claimed():
        assert time.monotonic() - began > 0.4
        assert "of-another" not in [each.name for each in (files.path(place) / ".lock").iterdir()]


def test_a_run_that_lost_its_folder_writes_no_more(place, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.05)
    run = Workdir(place, default())
    with run.claimed():
        run.log(1, "train", {"loss": 1.0})
        flag(place)
        for _ in range(100):
            time.sleep(0.05)
            if run.lock._lost:
                break
        with pytest.raises(OSError, match="another one has taken over; it ends here"):
            run.flush()
        with pytest.raises(OSError, match="taken over"):
            run.write_json("result.json", {})
    assert not (files.path(place) / "result.json").exists()


def test_a_run_that_was_suspended_looks_before_it_writes(place, monkeypatch):
    monkeypatch.setattr(locks, "SILENCE", 0.2)  # shorter than a beat: so long it is as good as suspended
    run = Workdir(place, default())
    with run.claimed():
        time.sleep(0.3)
        run.write_json("result.json", {"mine": 1})  # nobody has come
        flag(place)
        with pytest.raises(OSError, match="another one has taken over; it ends here"):
            run.write_json("result.json", {"mine": 2})
    assert json.loads((files.path(place) / "result.json").read_text()) == {"mine": 1}


def test_a_bucket_that_is_not_there_is_one_line_before_anything_is_trained(bucket, capsys):
    assert train.main(arguments(f"{bucket}-of-nobody/run")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: workdir ") and error.count("\n") == 1 and "cannot be" in error


@pytest.mark.slow
def test_a_run_in_a_store_may_be_made_longer(place):
    more = ["--config.optim.schedule=constant", "--config.optim.warmup_fraction=0", "--config.optim.steps={}"]
    whole, grown = f"{place}/whole", f"{place}/grown"
    for workdir, steps in ((whole, 4), (grown, 2), (grown, 4)):
        assert train.main(arguments(workdir, *(flag.format(steps) for flag in more))) == 0
    assert values(grown)[-1] == values(whole)[-1]
    name = "adapter/adapter_model.safetensors"
    assert (files.path(grown) / name).read_bytes() == (files.path(whole) / name).read_bytes()


@pytest.mark.slow
def test_a_population_lies_in_a_store(place):
    more = ["--config.optim.steps=3", "--config.population=scale=1|2"]
    assert train.main(arguments(f"{place}/run", *more)) == 0
    found = collect([place])
    assert [result.file.parent.name for result in found.results] == ["scale=1.0", "scale=2.0"]


def test_weights_lie_in_a_store(place):
    asset = open_weights("asset:vit_micro")
    folder, data = files.path(place) / "model", safetensors.numpy.save({"head": np.arange(6.0, dtype=np.float32)})
    files.replace(folder / "model.safetensors", data)
    files.replace(folder / "config.json", '{"model_type": "vit"}')
    files.replace(folder / "pytorch_model.bin", b"what nobody reads")
    files.replace(files.path(place) / "own.safetensors", WEIGHTS.read_bytes())
    opened = open_weights(f"{place}/model")
    assert opened.config == {"model_type": "vit"} and np.array_equal(opened.arrays["head"], np.arange(6.0))
    assert sorted(each.name for each in opened.path.iterdir()) == ["config.json", "model.safetensors"]
    own = open_weights(f"{place}/own.safetensors")
    assert own.arrays.keys() == asset.arrays.keys() and own.mean == asset.mean
    with pytest.raises(surm.InputError, match=f"no weights at '{place}/none'"):
        open_weights(f"{place}/none")


def test_an_adapter_that_is_saved_again_is_the_new_one(place):
    base = nnx.Sequential(nnx.Linear(6, 4, rngs=nnx.Rngs(0)))
    model, x = surm.attach(base, surm.PeftSpec(targets=".*"), nnx.Rngs(1)), jnp.ones((2, 6))
    for number in range(2):
        graphdef, trained, frozen = surgery.split(model)
        model = surgery.join(graphdef, {name: value + number + 1 for name, value in trained.items()}, frozen)
        surm.save_adapter(f"{place}/adapter", model)
        assert np.array_equal(surm.load_adapter(f"{place}/adapter", base)(x), model(x))
    assert sorted(each.name for each in (files.path(place) / "adapter").iterdir()) == [store.CONFIG, store.WEIGHTS]
    assert "an adapter of surm" in inspection.shown(f"{place}/adapter")


@pytest.mark.slow
def test_other_libraries_forms_are_written_to_a_store_and_read_there(place, tmp_path):
    model, plain = noisy(adapted("vit")), base("vit")
    for where in (place, str(tmp_path)):
        surm.export_peft(f"{where}/peft", model, names="transformers4")
        surm.export_merged(f"{where}/merged", model)
    for file in ("peft/adapter_model.safetensors", "peft/adapter_config.json", "merged/model.safetensors"):
        assert (files.path(place) / file).read_bytes() == (tmp_path / file).read_bytes()
    ours, theirs = (surm.import_peft(f"{where}/peft", plain) for where in (place, str(tmp_path)))
    assert np.array_equal(answer(ours), answer(theirs))
    merged = [open_weights(f"{where}/merged").arrays for where in (place, str(tmp_path))]
    assert merged[0].keys() == merged[1].keys()
