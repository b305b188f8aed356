"""`generate.py` and `make_pairs.py` that are killed or whose disk fails go on by the same command to the same bytes."""

import random
import signal

import pytest
from conftest import tiny_model
from safetensors.torch import save_file

from faults.report import record
from faults.runs import differences, moment

KILLS = 30
STARTS = 3  # about as many starts does one run take
BROKEN = [("open", 28), ("write", 28), ("write", 5), ("fsync", 5), ("rename", 5)]  # event, error: full, input/output


@pytest.mark.parametrize("name", ["generate", "make_pairs"])
def test_answers_of_a_run_that_is_killed_again_and_again_are_the_same(prepared, name):
    new, whole = prepared(name)
    chance, kills, runs = random.Random(f"kills of {name}"), 0, 0
    while kills < KILLS:
        run, runs, sampled = new.copy(f"{name}_killed_{runs}"), runs + 1, set[int]()
        while True:
            ended = run.start(**moment(chance, kills, whole.first, STARTS))
            # The last batch that was begun may not have been written; what came before it is not sampled again.
            assert not sampled & set(ended.steps), "an answer that was written was sampled again"
            sampled |= set(ended.steps[:-1])
            if ended.code == 1 and (run.folder / "out.jsonl").exists():
                # Killed when the output had its name and its parts had not been deleted: it may be an older one.
                line = ended.line("RecipeError: output=out.jsonl exists: set overwrite to replace it")
                assert line, ended.output
                record(f"kill -9 of {name} after its output was written", line)
                run.argv += ["--overwrite", "true"]
                continue
            if ended.code != -signal.SIGKILL:
                break
            kills += 1
            record(f"kill -9 of {name}", "", bool(ended.steps) * 2, ended.cut_off_at)
        assert ended.code == 0, ended.output
        assert differences(run, whole) == []


@pytest.mark.parametrize(("kind", "error"), BROKEN)
def test_a_disk_that_fails_is_named_and_the_same_command_goes_on(prepared, kind, error):
    new, whole = prepared("generate")
    many = sum(event == kind for event, _ in whole.first.events)
    run = new.copy(f"generate_{kind}_{error}")
    number = random.Random(f"{kind} {error}").randint(1, many)
    ended = run.start(kind=kind, number=number, error=error, lasting=error == 28, share=50)
    assert ended.code == 1, ended.output
    assert "Traceback" not in ended.output
    line = ended.line("Error: ")
    assert "cannot be written" in line
    record(f"generate, failing {kind}", line, 0, ended.cut_off_at)
    assert run.start().code == 0
    assert differences(run, whole) == []


def test_another_model_under_the_same_path_is_refused(prepared):
    new, _ = prepared("generate")
    run = new.copy("generate_other")
    assert run.start(kind="step", number=4).code == -signal.SIGKILL
    other = tiny_model(seed=1, vocab_size=262, max_sequence_length=64, mask_token_id=258, eos_token_id=257)
    save_file(
        {name: tensor.float() for name, tensor in other.state_dict().items()}, run.folder / "model/model.safetensors"
    )
    before = run.snapshot()
    ended = run.start()
    assert ended.code == 1
    line = ended.line("was made with weights=")
    assert line
    assert run.snapshot() == before
    record("generate, another model", line)
