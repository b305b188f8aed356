"""A newcomer's path after training, each command in a process of its own: the adapter directory is taken for a model.

JSONL -> LoRA by recipes/align.py -> info, chat, variance, generate on the adapters -> merge -> the same on the result.
"""

import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT, tiny_model
from test_sft import IDS, TOKENIZER

from llada.sampling.settings import SamplerSettings

SAMPLED = SamplerSettings(steps=8, gen_length=8, block_length=8)


def command(*words: object, cwd, text: str = "") -> subprocess.CompletedProcess:
    """Run Python with these arguments in a folder; stop the test with its messages if it fails."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env=environment | {"HOME": str(cwd), "ACCELERATE_USE_CPU": "true"},
        input=text, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Traceback" not in result.stderr
    return result


def write_rows(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model with sampler settings, pairs, prompts, and adapters trained by the recipe from a relative path."""
    folder = tmp_path_factory.mktemp("newcomer")
    tiny_model(dtype=torch.float32, n_layers=1, **IDS).save_pretrained(folder / "base")
    TOKENIZER.save_pretrained(folder / "base")
    SAMPLED.save(folder / "base")
    write_rows(folder / "pairs.jsonl", [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(12)])
    write_rows(folder / "prompts.jsonl", [{"prompt": f"q{i}"} for i in range(6)])
    options = (
        "--model_name_or_path base --dataset_name pairs.jsonl --output_dir mine --use_peft true --lora_r 4 "
        "--learning_rate 0.05 --warmup_steps 0 --max_steps 6 --n_t 1 --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 1 --save_strategy no --report_to none --use_cpu true --lora_dropout 0"
    )
    trained = command(ROOT / "recipes/align.py", *options.split(), cwd=folder)
    (folder / "trained.txt").write_text(trained.stdout)
    return folder


def printed(folder) -> dict[str, list[str]]:
    """The commands under "Next:", as words for Python, by their names; `llada chat` is `python -m llada chat`."""
    text = (folder / "trained.txt").read_text().rpartition("Next:\n")[2]
    lines = [shlex.split(line) for line in text.splitlines() if not line.startswith("  #")]
    return {" ".join(words[:2]): ["-m", *words] for words in lines}


def test_an_adapter_directory_knows_its_base_tokenizer_and_settings(folder):
    config = json.loads((folder / "mine" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str((folder / "base").resolve())  # given as a relative path
    assert SamplerSettings.load(folder / "mine") == SAMPLED
    assert json.loads((folder / "mine" / "tokenizer_config.json").read_text())["trained_on_turns"] is False


@pytest.mark.slow
def test_the_printed_commands_run_and_adapters_answer_as_the_merged_model(folder):
    """The merged model's scores, too, are the adapters' to 1e-4: both are the same float32 weights."""
    steps = printed(folder)
    assert list(steps) == ["llada chat", "llada info", "llada generate", "vrpo variance", "llada merge"]
    command(*steps["llada merge"], cwd=folder)
    assert not list(folder.glob(".*.tmp"))
    quick = ("--gradient", "none", "--repeats", "2", "--budgets", "1", "--source_pairs", "0")

    def results(model: str) -> tuple[subprocess.CompletedProcess, str, list[str], list[float]]:
        def with_model(words: list[str]) -> list[str]:
            return [word.replace("mine", model) for word in words]

        talked = command(*with_model(steps["llada chat"]), cwd=folder, text="q1\n/help\n/hepl\nq2\nexit\nnever\n")
        shown = command(*with_model(steps["llada info"]), cwd=folder).stdout
        command(*with_model(steps["vrpo variance"]), *quick, cwd=folder)
        rows = json.loads((folder / model / "variance" / "variance.json").read_text())["rows"]
        words = ("--model", model, "--prompts", "prompts.jsonl", "--output", f"{model}.jsonl")
        command(ROOT / "recipes/generate.py", *words, cwd=folder)
        completions = [json.loads(line)["completion"] for line in (folder / f"{model}.jsonl").read_text().splitlines()]
        return talked, shown, completions, [row["score"]["value"] for row in rows]

    with ThreadPoolExecutor(2) as pool:
        (talked, shown, completions, scores), merged = pool.map(results, ("mine", "mine_merged"))
    assert "gen_length=8" in talked.stderr
    assert "without a chat template" in talked.stderr
    assert "/new" in talked.stdout
    assert "/hepl is no command" in talked.stdout
    assert merged[0].stdout == talked.stdout
    assert "LORA, rank 4" in shown
    assert "chat template not used: trained on plain text" in " ".join(merged[1].replace("│", " ").split())
    assert "LORA" not in merged[1]
    assert merged[2] == completions
    assert merged[3] == pytest.approx(scores, rel=1e-3)


COMMANDS = {
    "llada.chat": ("--model", "runs/absent"),
    "llada.info": ("runs/absent",),
    "llada.merge": ("runs/absent", "out"),
    "vrpo.variance": ("--model", "runs/absent", "--ref_model", "base", "--data", "pairs.jsonl"),
}


QUICK = ("llada.chat", "llada.merge")  # each of the others takes ten seconds to import


@pytest.mark.parametrize(
    "module", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in COMMANDS]
)
def test_a_model_that_is_not_there_is_one_line(folder, module):
    stopped = subprocess.run(
        [sys.executable, "-m", module, *COMMANDS[module]], cwd=folder, capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(folder)},
    )  # fmt: skip
    assert stopped.returncode == 1
    *before, message = stopped.stderr.splitlines()
    assert message.startswith("RecipeError: runs/absent does not exist")
    assert before in ([], ["importing torch and transformers ..."])  # where that takes two seconds


@pytest.mark.slow
def test_the_variance_leaves_out_flawed_rows_as_training_with_drop_invalid_does(folder):
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    write_rows(folder / "flawed.jsonl", [{"prompt": "q", "chosen": "yes", "rejected": ""}, *rows])
    words = "--model base --ref_model mine --data flawed.jsonl --gradient none --repeats 2 --budgets 1 --source_pairs 0"
    found = command("-m", "vrpo.variance", *words.split(), "--output", "flawed", cwd=folder)
    assert "12 of 13 pairs of flawed.jsonl" in found.stdout
    assert "1 row has an empty 'rejected': row 0 (counted from 0)" in found.stderr
