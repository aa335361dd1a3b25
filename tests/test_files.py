"""A file is whole or absent, whatever else writes it and however the writing ends."""

import concurrent.futures
import os

import pytest

from surm import files


def test_many_writers_leave_one_whole_file(tmp_path):
    file, contents = tmp_path / "result.json", [f"{number}" * 50_000 for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        for written in [threads.submit(files.replace, file, content) for content in contents for _ in range(10)]:
            written.result()
    assert file.read_text() in contents
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    files.replace(file, "before")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        files.replace(file, b"after")
    assert file.read_text() == "before" and os.listdir(tmp_path) == ["result.json"]
