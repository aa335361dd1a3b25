"""Where an adapter of PEFT's lies: in the folder that is named, in one below it, or on the hub."""

import hashlib
import http.server
import json
import shutil
import threading
from typing import ClassVar

import numpy as np
import pytest
from huggingface_hub import constants

import surm
from surm import InputError
from surm.exchange import import_peft, peft_folder
from surm.models import hub
from tests.exchange.models import GOLDEN, answer, base, one_line

LORA = GOLDEN / "transformers5" / "vit_lora"
COMMIT = "0" * 40


def refused(name, message):
    with pytest.raises(InputError, match=message) as error:
        import_peft(name, base("vit"))
    return one_line(error)


def test_the_only_folder_below_is_read_and_said(tmp_path, capsys):
    shutil.copytree(LORA, tmp_path / "runs" / "class")
    (tmp_path / "runs" / "logs").mkdir()
    (tmp_path / "runs" / "README.md").write_text("")
    model = import_peft(tmp_path / "runs", base("vit"))
    np.testing.assert_array_equal(answer(model), answer(import_peft(LORA, base("vit"))))
    assert capsys.readouterr().out == f"{tmp_path}/runs: the adapter in its folder class, the only one, is read\n"


def test_of_several_each_is_named(tmp_path):
    for name in ("class", "other"):
        shutil.copytree(LORA, tmp_path / name)
    said = refused(tmp_path, "holds 2 adapters; expected the folder of one: ")
    assert f"{tmp_path}/class, {tmp_path}/other" in said and "newest" not in said


def test_of_checkpoints_the_newest_is_named_last(tmp_path):
    for step in (500, 1000, 1500, 90, 100, 200, 300, 400, 600, 700):
        (tmp_path / f"checkpoint-{step}").mkdir()
        shutil.copy(LORA / "adapter_config.json", tmp_path / f"checkpoint-{step}")
    said = refused(
        tmp_path, r"holds 10 adapters; expected the folder of one: 2 more, .*checkpoint-1500 \(the newest\)$"
    )
    assert "checkpoint-300, " in said and "checkpoint-100," not in said


def test_one_in_the_folder_itself_comes_first(tmp_path, capsys):
    shutil.copytree(LORA, tmp_path / "run")
    shutil.copytree(GOLDEN / "transformers5" / "vit_c3a", tmp_path / "run" / "checkpoint-5")
    assert surm.peft.surgery.spec_of(import_peft(str(tmp_path / "run"), base("vit"))).family == "low_rank"
    assert capsys.readouterr().out == ""


def test_no_folder_and_an_empty_one(tmp_path):
    refused(
        tmp_path / "none", r"no adapter in '.*none': there is no such folder; expected one with adapter_config.json"
    )
    refused(tmp_path, "no adapter in .*: adapter_config.json is missing$")
    refused(
        LORA / "adapter_model.safetensors", "is a file; expected the folder of an adapter, with adapter_config.json"
    )


def test_a_folder_below_without_weights_is_named_whole(tmp_path):
    shutil.copytree(LORA, tmp_path / "class")
    (tmp_path / "class" / "adapter_model.safetensors").rename(tmp_path / "class" / "adapter_model.bin")
    refused(tmp_path, r"/class' has no adapter_model.safetensors, and adapter_model.bin is a pickle, which surm never")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub's, with no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache, name, *folders, revision="main"):
    """Lays a repository of adapters into the cache, each in a folder; "" is its root."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / revision).write_text(COMMIT)
    for folder in folders:
        shutil.copytree(LORA, repository / "snapshots" / COMMIT / folder, dirs_exist_ok=True)
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        (("",), "hf:some/lora"),
        (("", "checkpoint-5"), "hf:some/lora"),
        (("",), "hf:some/lora/"),
        (("one", "other"), "hf:some/lora/other"),
        (("class",), "hf:some/lora"),
        (("a/b",), "hf:some/lora/a/b"),
    ],
)
def test_an_adapter_in_the_hubs_cache(folders, name, cache):
    cached(cache, "some/lora", *folders)
    np.testing.assert_array_equal(answer(import_peft(name, base("vit"))), answer(import_peft(LORA, base("vit"))))


def test_a_revision_on_the_hub(cache):
    cached(cache, "some/lora", "class", revision="v2")
    assert peft_folder.find("hf:some/lora@v2").name == "hf:some/lora/class@v2"
    assert import_peft("hf:some/lora@v2", base("vit"))
    assert "'hf:some/lora' cannot be fetched (" in refused("hf:some/lora", "some/lora")


def test_what_is_not_on_the_hub_is_one_line(cache):
    assert "let HF_HOME point at a cache that holds it" in refused("hf:some/none", "'hf:some/none' cannot be fetched")
    snapshot = cached(cache, "some/lora", "one", "other")
    refused("hf:some/lora", "holds 2 adapters; expected the folder of one: hf:some/lora/one, hf:some/lora/other$")
    refused("hf:some/lora/third", "some/lora has no folder 'third' with any of adapter_config.json")
    (snapshot / "one" / "adapter_model.safetensors").unlink()
    refused(
        "hf:some/lora/one", "has no adapter_model.safetensors that can be fetched; its adapter_model.bin, if it has"
    )


@pytest.mark.parametrize("name", ["hf:", "hf:some lora", "hf:some/lora/../x", "hf:some/lora@", "hf:/lora"])
def test_a_name_that_is_none_of_the_hubs(name, cache):
    refused(
        name,
        "cannot be fetched .it is no valid name on the hub.; expected hf:OWNER/NAME, optionally followed by /FOLDER",
    )


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers for one repository with two adapters, a pickle and a whole model."""

    FILES = {
        "class/adapter_config.json": (LORA / "adapter_config.json").read_bytes(),
        "class/adapter_model.safetensors": (LORA / "adapter_model.safetensors").read_bytes(),
        "class/adapter_model.bin": b"a pickle",
        "model.safetensors": b"whole",
        "README.md": b"text",
    }
    asked: ClassVar[list[str]] = []

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        file = self.path.partition(f"/resolve/{COMMIT}/")[2]
        listed = {"id": "some/lora", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.FILES]}
        tree = [{"type": "file", "path": name, "size": len(held), "oid": "1" * 40} for name, held in self.FILES.items()]
        data = self.FILES[file] if file else json.dumps(tree if "/tree/" in self.path else listed).encode()
        if file and body:
            self.asked.append(file)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", hashlib.sha256(data).hexdigest())
        self.end_headers()
        self.wfile.write(data if body else b"")

    def log_message(self, *args):
        pass


def test_only_configs_and_the_weights_of_one_are_fetched(cache, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        model = import_peft("hf:some/lora", base("vit"))
        server.shutdown()
    np.testing.assert_array_equal(answer(model), answer(import_peft(LORA, base("vit"))))
    assert Hub.asked == ["class/adapter_config.json", "class/adapter_model.safetensors"]


def test_the_parts_of_a_name():
    assert hub.place("hf:gpt2") == ("gpt2", "", None)
    assert hub.place("hf:a-b/c.d_e@refs/pr/3") == ("a-b/c.d_e", "", "refs/pr/3")
