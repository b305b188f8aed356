"""The wheel alone: built, installed into an environment without the repository, and run from an empty directory."""

import json
import os
import shlex
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import llada.__main__
import vrpo.__main__

pytestmark = pytest.mark.slow
SIZES = '{"d_model": 16, "n_layers": 1, "n_heads": 2, "mlp_hidden_size": 32, "max_sequence_length": 64}'
TINY = (
    "--max_steps 2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --save_strategy no --report_to none "
    "--use_cpu true --dtype float32"
)


def output(command: list, **options) -> str:
    """What a command prints, without the variable that would lead Python to the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300, **options
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source distribution and the wheel, which is built from it, of what git would take with it."""
    pytest.importorskip("build")
    source, folder = tmp_path_factory.mktemp("source") / "repository", tmp_path_factory.mktemp("built")
    names = output(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT).splitlines()
    for name in (name for name in names if (ROOT / name).is_file()):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    output([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, source])
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The programs of an environment that has the wheel, and all other packages from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    output([sys.executable, "-m", "venv", "--without-pip", folder])
    (wheel,) = built.glob("*.whl")
    output([sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", "--no-index", wheel])
    # As lines of a path file: the files there that put the repository on the path are not read then.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return folder / "bin"


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs a command line in an empty directory."""
    empty = tmp_path_factory.mktemp("empty")

    def call(line: str, text: str = "") -> str:
        program, *words = shlex.split(line)
        return output([installed / program, *words], cwd=empty, input=text)

    call.folder = empty
    return call


def test_the_distributions_hold_what_they_must_and_nothing_else(built):
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {"llada/py.typed", "vrpo/py.typed", "llada/training/model_card.md", "llada/harness/tasks/tiny.jsonl"}
    assert data < names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"llada", "vrpo"}
    packaged = {path for path in (ROOT / "llada").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {str(path.relative_to(ROOT)) for path in packaged} == {name for name in names if name.startswith("llada/")}
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "tests/conftest.py", "recipes/align.py", "recipes/tiny_vrpo.yaml"} < held
    assert {"docs/trl.md", "examples/quickstart.py", "benchmarks/frontier.py", "tests/fixtures", ".ci/run"} < held
    assert not [name for name in held if name.endswith(".pyc") or "runs/" in name]


@pytest.mark.parametrize("program", ["llada", "vrpo"])
def test_every_command_helps(run, program):
    commands = {"llada": llada.__main__.COMMANDS, "vrpo": vrpo.__main__.COMMANDS}[program]
    assert all(name in run(f"{program} --help") for name in commands)
    for name in commands:
        assert "usage:" in run(f"{program} {name} --help")
    assert "complete " in run(f"{program} --print-completion bash")


def test_pretraining_sft_alignment_and_a_dialogue_run_from_the_wheel(run):
    where = run('python -c "import llada, vrpo; print(llada.__file__, vrpo.__file__)"')
    assert str(ROOT) not in where
    folder: Path = run.folder
    (folder / "text.txt").write_text("to be or not to be\n" * 20)
    pairs = [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no", "completion": "yes"} for i in range(8)]
    for name, columns in (("sft", ("prompt", "completion")), ("pairs", ("prompt", "chosen", "rejected"))):
        rows = [json.dumps({column: pair[column] for column in columns}) for pair in pairs]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    run(f"llada pretrain --architecture '{SIZES}' --tokenizer bytes --dataset_name text.txt --output_dir base {TINY}")
    run(f"llada sft --model_name_or_path base --dataset_name sft.jsonl --output_dir tuned {TINY}")
    aligned = "--model_name_or_path tuned --dataset_name pairs.jsonl --n_t 2 --use_peft true --lora_r 2"
    done = run(f"vrpo align {aligned} --output_dir aligned {TINY}")
    assert "llada chat --model aligned" in done
    assert "sampling design | vrpo, n = 2" in (folder / "aligned" / "README.md").read_text()
    run("llada merge aligned merged")
    assert "parameters" in run("llada info merged")
    run("llada chat --model merged --gen_length 4 --steps 4 --block_length 4", "hello\n")
    run(f"python -m accelerate.commands.launch --cpu --num_processes 2 -m vrpo align {aligned} --output_dir two {TINY}")
    assert (folder / "two" / "adapter_model.safetensors").exists()
