"""Merged models are whole or not there; weights that are torn or damaged are named by file, where they are loaded."""

import errno
import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file
from test_adapters import trained

import llada.cli.merge
from llada.cli.checkpoint import load_config, load_merged, load_model
from llada.cli.info import rows
from llada.cli.merge import merge
from llada.errors import OutputError, RecipeError
from llada.files import flaw_of, write_manifest


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """base/, adapters/ and merged/."""
    folder = tmp_path_factory.mktemp("models")
    trained(folder)
    merge(str(folder / "adapters"), str(folder / "merged"))
    return folder


@pytest.fixture
def merged(models, tmp_path):
    shutil.copytree(models / "merged", tmp_path / "merged")
    return tmp_path / "merged"


def load(folder) -> None:
    load_model(str(folder), load_config(str(folder))[1])


def test_a_merged_model_lists_its_files(merged):
    assert flaw_of(merged) is None
    listed = json.loads((merged / "manifest.json").read_text())["files"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(listed)
    load(merged)


def flip(file) -> None:
    """Another number in the middle, in a file of the same size that can be read."""
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    tensors[name].flatten()[0] += 1
    save_file(tensors, file, {"format": "pt"})


DAMAGE = {
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:-100]), "model.safetensors has .* bytes instead of"),
    "empty": (lambda file: file.write_bytes(b""), "model.safetensors has 0 bytes instead of"),
    "longer": (lambda file: file.write_bytes(file.read_bytes() + b"x"), "model.safetensors has .* bytes instead of"),
    "changed": (flip, "model.safetensors is damaged"),
    "missing": (lambda file: file.unlink(), "model.safetensors is missing"),
    "a directory": (lambda file: (file.unlink(), file.mkdir()), "model.safetensors "),
    "no manifest": (lambda file: (file.parent / "manifest.json").write_text("{"), "manifest.json is damaged"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_weights_are_named_when_they_are_loaded(merged, how):
    damage, message = DAMAGE[how]
    damage(merged / "model.safetensors")
    for work in (load, lambda folder: load_merged(str(folder), load_config(str(folder))[1])):
        with pytest.raises(RecipeError, match=f"merged is no whole model: {message}"):
            work(merged)


def test_damaged_weights_of_the_base_are_named_when_adapters_are_loaded(models, tmp_path):
    for name in ("base", "adapters"):
        shutil.copytree(models / name, tmp_path / name)
        write_manifest(tmp_path / name)
    file = tmp_path / "adapters" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}))
    load(tmp_path / "adapters")  # an edited config is no damage
    flip(tmp_path / "base" / "model.safetensors")
    with pytest.raises(RecipeError, match=r"base is no whole model: model\.safetensors is damaged"):
        load(tmp_path / "adapters")
    shutil.rmtree(tmp_path / "base")
    shutil.copytree(models / "base", tmp_path / "base")
    flip(tmp_path / "adapters" / "adapter_model.safetensors")
    with pytest.raises(RecipeError, match=r"adapters is no whole model: adapter_model\.safetensors is damaged"):
        load(tmp_path / "adapters")


@pytest.mark.parametrize("content", [b"", b"torn", bytes(100), b"\xff" * 100])
def test_the_summary_names_a_torn_weight_file(merged, content):
    (merged / "model.safetensors").write_bytes(content)
    with pytest.raises(RecipeError, match=r"merged/model\.safetensors cannot be read .*: it is truncated or no weight"):
        rows(str(merged), 16)


TEXTS = {"empty": b"", "torn": b'{"a": {"b', "no UTF-8": b"\xff\xfe\x00\x01"}


@pytest.mark.parametrize("content", TEXTS)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_torn_tokenizer_is_named_by_file(merged, name, content):
    (merged / name).write_bytes(TEXTS[content])
    with pytest.raises(ValueError, match=rf"the tokenizer of .*merged cannot be loaded: .*merged/{name} is damaged"):
        load(merged)
    assert f"merged/{name} is damaged" in dict(rows(str(merged), 16))["ids"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("chat_template.jinja", b"{% for message in", "the chat template of .*merged cannot be rendered"),
        ("chat_template.jinja", b"\xff\xfe", r"merged/chat_template\.jinja is damaged"),
        ("tokenizer.json", None, "merged has no tokenizer.json"),
        ("adapter_config.json", b"", r"merged/adapter_config\.json is no JSON"),
        ("adapter_config.json", b'{"base_model', r"merged/adapter_config\.json is no JSON"),
        ("adapter_config.json", b"\xff", r"merged/adapter_config\.json is no JSON"),
        ("adapter_config.json", b"[]", r"merged/adapter_config\.json must hold a JSON object"),
        ("adapter_config.json", b"{}", "names no base model"),
        ("config.json", b"", "merged/config.json is no JSON"),
        ("config.json", b'{"model_type"', "merged/config.json is no JSON"),
        ("config.json", None, "holds no model"),
    ],
)
def test_other_torn_files_are_named(merged, name, content, message):
    if content is None:
        (merged / name).unlink()
    else:
        (merged / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=message):
        load(merged)


def test_a_full_disk_leaves_the_former_model(models, merged, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(llada.cli.merge, "write_manifest", full)
    with pytest.raises(OutputError, match="merged cannot be written: No space left on device. What was there before"):
        merge(str(models / "adapters"), str(merged), overwrite=True)
    assert flaw_of(merged) is None
    assert [path.name for path in merged.parent.iterdir()] == ["merged"]


@pytest.mark.slow
def test_what_a_killed_merge_has_left_is_no_model_and_goes_with_the_next_one(models, tmp_path, monkeypatch):
    """Killed before the manifest; the directory of a merge that is still running stays."""
    code = (
        "import os, llada, llada.cli.merge as m\n"
        "m.write_manifest = lambda folder: os.kill(os.getpid(), 9)\n"
        f"m.merge({str(models / 'adapters')!r}, {str(tmp_path / 'out')!r})\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=120)
    assert killed.returncode == -9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    running = tmp_path / f".out.{os.getppid()}.tmp"
    running.mkdir()
    merge(str(models / "adapters"), str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([running.name, "out"])
    assert flaw_of(tmp_path / "out") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16' must be one of auto, float32, bfloat16"),
        ({"dtype": "nan"}, "dtype='nan' must be one of"),
        ({"dtype": None}, "dtype=None must be one of"),
        ({"adapter": ""}, "the name of the model is empty"),
        ({"adapter": "./nowhere"}, "nowhere does not exist"),
        ({"out": "{adapters}"}, "which is merged from"),
        ({"out": "{adapters}/adapter_config.json"}, "is a file: name a directory"),
        ({"out": "{adapters}/adapter_config.json/out"}, "cannot be written: Not a directory"),
    ],
)
def test_options_of_a_merge_are_checked_before_anything_is_loaded(models, monkeypatch, options, message):
    monkeypatch.setattr(llada.cli.merge, "load_merged", None)
    adapters = str(models / "adapters")
    given = {"adapter": adapters, "out": str(models / "new")} | {
        name: value.format(adapters=adapters) if isinstance(value, str) else value for name, value in options.items()
    }
    with pytest.raises(RecipeError, match=message):
        merge(**given)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused(models, rank):
    with pytest.raises(RecipeError, match=f"rank={rank} must be at least 1"):
        rows(str(models / "base"), rank)
