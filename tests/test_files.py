"""Files are whole or not there: replacement, manifests and what they find."""

import json
import re

import pytest

from llada import files
from llada.files import (
    delete_directory,
    digest,
    flaw_of,
    mark_unfinished,
    replace_directory,
    replace_file,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run" / "shards").mkdir(parents=True)
    (tmp_path / "run" / "weights").write_bytes(b"0123456789")
    (tmp_path / "run" / "shards" / "rank0").write_bytes(b"abc")
    write_manifest(tmp_path / "run")
    return tmp_path / "run"


def test_a_manifest_lists_every_file_below_but_itself(folder):
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert {name: file["size"] for name, file in listed.items()} == {"weights": 10, "shards/rank0": 3}
    # XXH3-128 of "abc" in its canonical form, as `xxhsum -H2` prints it.
    abc = "06b05ab6733a618578af5f94892f3950"
    assert listed["shards/rank0"]["xxh3_128"] == digest(folder / "shards" / "rank0") == abc
    assert flaw_of(folder) is None
    (folder / "eval_results.json").write_text("{}")
    assert flaw_of(folder) is None  # not listed


FLAWS = {
    "missing": (lambda folder: (folder / "weights").unlink(), "weights is missing"),
    "cut": (lambda folder: (folder / "weights").write_bytes(b"01234"), "weights has 5 bytes instead of 10"),
    "one bit": (lambda folder: (folder / "weights").write_bytes(b"0123456788"), r"weights is damaged \(its hash"),
    "a directory": (
        lambda folder: ((folder / "weights").unlink(), (folder / "weights").mkdir()),
        "weights (has|cannot be read)",
    ),
    "nested": (lambda folder: (folder / "shards" / "rank0").write_bytes(b"abd"), "rank0 is damaged"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "it has no manifest.json"),
    "begun": (mark_unfinished, "it was not finished"),
    "empty": (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json is damaged"),
    "cut manifest": (lambda folder: (folder / "manifest.json").write_text('{"fil'), "manifest.json is damaged"),
    "list": (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "number": (lambda folder: (folder / "manifest.json").write_text("3"), "manifest.json is damaged"),
    "no sizes": (lambda folder: (folder / "manifest.json").write_text('{"files": {"weights": {}}}'), "damaged"),
    "other form": (lambda folder: (folder / "manifest.json").write_text('{"files": ["weights"]}'), "damaged"),
    "not text": (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe\x00"), "manifest.json is damaged"),
}


@pytest.mark.parametrize("case", FLAWS)
def test_what_is_not_whole_is_named(folder, case):
    harm, expected = FLAWS[case]
    harm(folder)
    assert re.match(rf"(.* )?{expected}", flaw_of(folder))


def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "state.json"
    replace_file(path, "old")
    replace_file(path, b"new")
    assert path.read_text() == "new"

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, "newer")
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


def test_directories_are_replaced_and_deleted_as_one(tmp_path, monkeypatch):
    new, target = tmp_path / ".new", tmp_path / "model"
    for path, name in ((new, "b"), (target, "a")):
        path.mkdir()
        (path / name).touch()
    replace_directory(new, target)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["model", "model/b"]
    # A deletion that is killed half way leaves nothing under the directory's own name.
    monkeypatch.setattr(files.shutil, "rmtree", lambda path: None)
    delete_directory(target)
    assert not target.exists()
    delete_directory(target)  # is no error
