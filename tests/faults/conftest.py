"""The server that runs recipes, the runs that faults are compared with, and the table at the end."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import tiny_model

from faults import report
from faults.runs import EVERY, HERE, STEPS, Run, Server
from llada.data.tokenizer import byte_tokenizer

ARCHITECTURE = dict(d_model=16, n_layers=1, n_heads=2, mlp_hidden_size=32, max_sequence_length=64, rope_theta=10000.0)
IDS = dict(vocab_size=262, mask_token_id=258, eos_token_id=257, pad_token_id=257, eot_token_id=261)
TRAINING = {
    "architecture": json.dumps(ARCHITECTURE), "tokenizer": "bytes", "dataset_name": "rows.jsonl", "output_dir": "run",
    "max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "report_to": "none",
    "use_cpu": "true", "save_strategy": "steps", "save_steps": EVERY, "save_total_limit": 2, "disable_tqdm": "true",
    "logging_steps": 1, "eval_fraction": 0.25, "resume": "true",
}  # fmt: skip
SAMPLING = {
    "model": "model", "prompts": "rows.jsonl", "gen_length": 8, "steps": 4, "block_length": 8, "batch_size": 2,
    "temperature": 1, "output": "out.jsonl",
}  # fmt: skip
ROUNDS = (SAMPLING.keys() | TRAINING.keys()) - {
    "model", "output", "temperature", "architecture", "tokenizer", "dataset_name", "eval_fraction",
}  # fmt: skip
OPTIONS = {
    "sft": TRAINING,
    "align": TRAINING | {"n_t": 2},
    "adapters": TRAINING | {"n_t": 2, "use_peft": "true"},
    "generate": SAMPLING,
    "make_pairs": SAMPLING | {"verifier": "odd.py:odd", "samples": 3},
    "iterate": {name: value for name, value in (SAMPLING | TRAINING).items() if name in ROUNDS}
    | {"model_name_or_path": "model", "reward": "odd.py:odd", "max_steps": 4, "n_t": 2, "drop_invalid": "true"},
}
PAIR, PROMPT = ("prompt", "chosen", "rejected"), ("prompt",)
ROW = {
    "sft": ("prompt", "completion"), "align": PAIR, "adapters": PAIR, "generate": PROMPT, "make_pairs": PROMPT,
    "iterate": PROMPT,
}  # fmt: skip


def pytest_collection_modifyitems(items):
    """All of these tests are slow: whole runs, many times."""
    for item in items:
        if HERE in Path(item.path).parents:
            item.add_marker(pytest.mark.slow)


def pytest_terminal_summary(terminalreporter):
    if report.TABLE:
        terminalreporter.section("what faults do")
        for line in report.lines():
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler, cc, for the library that makes system calls fail")
    library = tmp_path_factory.mktemp("library") / "system_calls.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "system_calls.c", "-ldl"], check=True)
    server = Server(library)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def prepared(server, tmp_path_factory):
    """A run by the name of its options, that has read nothing yet; and the same one, uninterrupted, made once."""
    folder, made = tmp_path_factory.mktemp("runs"), {}

    def run(name: str) -> tuple[Run, Run]:
        if name not in made:
            argv = [part for key, value in OPTIONS[name].items() for part in (f"--{key}", str(value))]
            new = Run(server, "align" if name == "adapters" else name, argv, folder / name)
            new.folder.mkdir()
            rows = [{column: f"{column[0]}{index}" for column in ROW[name]} for index in range(16)]
            (new.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if "prompts" in OPTIONS[name]:
                tiny_model(dtype=torch.float32, max_sequence_length=64, **IDS).save_pretrained(new.folder / "model")
                byte_tokenizer().save_pretrained(new.folder / "model")
                (new.folder / "odd.py").write_text("def odd(row, answer):\n    return len(answer) % 2 == 1\n")
            whole = new.copy(f"{name}_whole")
            assert whole.first.code == 0
            made[name] = new, whole
        return made[name]

    return run
