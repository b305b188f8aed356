"""Files of the newest checkpoint that are cut or changed at random places: resuming says so and loses nothing else."""

import random
import signal

import pytest

from faults.report import record
from faults.runs import EVERY, Run, differences
from llada.training.checkpoints import checkpoints_in

NEWEST = 8
FILES = ("config.json", "manifest.json", "model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt",
         "tokenizer.json", "trainer_state.json", "training_args.bin")  # fmt: skip


@pytest.fixture(scope="module")
def killed(prepared):
    """A run that was killed when it had two whole checkpoints, and the uninterrupted one."""
    new, whole = prepared("sft")
    run = new.copy("sft_torn")
    moments = [index for index, step in enumerate(whole.first.steps, 1) if step == NEWEST + 1]
    assert run.start(kind="step", number=moments[-1]).code == -signal.SIGKILL
    assert run.whole() == NEWEST
    return run, whole


def tear(run: Run, step: int, name: str, chance: random.Random, how: str) -> None:
    """Cut a file of a checkpoint at a random place, or change one bit of it."""
    path = run.run_dir / f"checkpoint-{step}" / name
    content = bytearray(path.read_bytes())
    place = chance.randrange(len(content))
    if how == "cut":
        content = content[:place]
    else:
        content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["cut", "changed"])
@pytest.mark.parametrize("name", FILES)
def test_a_torn_file_of_the_newest_checkpoint_is_named_and_the_one_before_it_is_used(killed, name, how):
    run = killed[0].copy(f"sft_{how}_{name}")
    tear(run, NEWEST, name, random.Random(f"{how} {name}"), how)
    ended = run.start()
    assert ended.code == 0, ended.output
    line = ended.line(rf"checkpoint-{NEWEST} is not whole")
    assert name in line
    assert ended.steps[0] == NEWEST - EVERY
    assert differences(run, killed[1]) == []
    record(f"file {how}", line, EVERY, name)


def test_without_a_whole_checkpoint_nothing_is_overwritten(killed):
    run, chance = killed[0].copy("sft_all_torn"), random.Random("all")
    for path in checkpoints_in(run.run_dir):
        tear(run, int(path.name.partition("-")[2]), chance.choice(FILES), chance, "cut")
    before = {path: path.read_bytes() for path in run.run_dir.rglob("*") if path.is_file() and path.name != ".run.lock"}
    ended = run.start()
    assert ended.code == 1
    assert "Traceback" not in ended.output
    line = ended.line("no whole checkpoint")
    assert line.startswith("RecipeError: there is no whole checkpoint to resume from: ")
    assert all(path.read_bytes() == content for path, content in before.items())
    record("all checkpoints torn", line, NEWEST)
