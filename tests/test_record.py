"""What a run writes down: its files, and a training that does not notice."""

import json

import pytest
import test_sft
import test_vrpo_trainer
import torch
from conftest import trajectory
from datasets import Dataset

from llada.record.callback import RunRecord

ROWS = {"rows": test_sft.PAIRS, "pairs": test_vrpo_trainer.PAIRS}
MODULES = {"rows": test_sft, "pairs": test_vrpo_trainer}
EVALUATED = dict(max_steps=4, eval_strategy="steps", eval_steps=2)


def run_of(folder, kind="rows", recorded=True, held_out=True, **changes):
    if held_out:
        changes |= {"eval_dataset": Dataset.from_list(ROWS[kind][:6])} | (EVALUATED | changes)
    run = MODULES[kind].trainer(folder, torch.float64, **({"max_steps": 4} | changes))
    if recorded:
        run.add_callback(RunRecord(run))
    return run


def file_of(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("kind", ["rows", "pairs"])
def test_training_does_not_notice(tmp_path, kind):
    plain, run = (run_of(tmp_path / str(recorded), kind, recorded) for recorded in (False, True))
    assert torch.equal(trajectory(plain), trajectory(run))
    for mine, other in zip(plain.model.parameters(), run.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    keys = {"rows": ["eval_timestep"], "pairs": ["eval_timestep_chosen", "eval_timestep_rejected"]}[kind]
    lines = [line for line in run.state.log_history if f"{keys[0]}/0.95" in line]
    assert [line["step"] for line in lines] == [0, 2, 4]
    assert [sum(name.startswith(f"{key}/") for name in lines[0]) for key in keys] == [10] * len(keys)
    print(json.dumps(file_of(tmp_path / "True", "run.json"))[:6000])
    print(json.dumps(file_of(tmp_path / "True", "samples.json"), indent=0)[:3000])
    print(lines)
