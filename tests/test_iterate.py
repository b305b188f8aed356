"""Iterative VRPO: rounds of sampling, judging and training, which go on after a kill and end in the same bytes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file
from test_completions import killed_after
from test_recipes import launch_recipe
from test_sft import IDS, TOKENIZER

import vrpo
from llada.cli.completions import Completions
from llada.cli.parts import PartFiles
from llada.diffusion.random_streams import ROUND, generator_for
from llada.errors import RecipeError
from llada.files import MANIFEST
from vrpo.recipes import align
from vrpo.recipes import iterate as recipe
from vrpo.rollouts import best_and_worst, load_judge, load_reward

FILES = {
    "letters.py": "def letters(row, answer):\n    return sum('a' <= letter <= 'z' for letter in answer)\n",
    "equal.py": "def equal(row, answer):\n    return 1\n",
    "bad.py": "def some(row, answer):\n    return float('nan') if row['prompt'] == 'q3' else 1.0\n\n\n"
    "def words(row, answer):\n    return answer\n\n\ndef fails(row, answer):\n    return row['missing']\n",
    # The interface of TRL's `BasePairwiseJudge`.
    "judges.py": "class Longer:\n    def judge(self, prompts, completions, shuffle_order=True):\n"
    "        assert not shuffle_order\n"
    "        return [-1 if len(a) == len(b) else int(len(b) > len(a)) for a, b in completions]\n\n\n"
    "class Short:\n    def judge(self, prompts, completions, shuffle_order=True):\n        return [0]\n\n\n"
    "class Unsure:\n    def judge(self, prompts, completions, shuffle_order=True):\n"
    "        return [0.5 for _ in prompts]\n",
}
OPTIONS = {
    "model_name_or_path": "model", "prompts": "prompts.jsonl", "reward": "letters.py:letters", "output_dir": "run",
    "gen_length": 8, "steps": 8, "block_length": 8, "batch_size": 8, "max_steps": 4, "n_t": 2, "learning_rate": 1e-2,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "warmup_steps": 0, "logging_steps": 1,
    "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1, "drop_invalid": "true", "report_to": "none",
    "use_cpu": "true", "disable_tqdm": "true", "lora_dropout": 0,
}  # fmt: skip


def run(**changes) -> None:
    options = {name: value for name, value in (OPTIONS | changes).items() if value is not None}
    recipe.main([word for name, value in options.items() for word in (f"--{name}", str(value))])


def prepare(folder: Path, prompts: int = 12) -> None:
    """A model that has learnt nothing, prompts, and functions that judge."""
    tiny_model(dtype=torch.float32, n_layers=1, **IDS).save_pretrained(folder / "model")
    TOKENIZER.save_pretrained(folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"q{i}"}) + "\n" for i in range(prompts)))
    for name, text in FILES.items():
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(path: str | Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().split("\n")[:-1]]


def written(folder: Path) -> dict[str, object]:
    """All that the run in a folder has written, by name, without what is of one start or place.

    Those are times, the hashes of files that hold them, and the absolute path in the config of adapters.
    """
    of_start = ("trainer_state.json", ".run.lock", "run.json", "report.html", MANIFEST)
    files = (path for path in (folder / "run").rglob("*") if path.is_file() and path.name not in of_start)
    here = str(folder).encode()
    found: dict[str, object] = {
        str(path.relative_to(folder / "run")): path.read_bytes().replace(here, b"") for path in files
    }
    return found | {"rounds.jsonl": [{**line, "seconds": 0} for line in rows(folder / "run" / "rounds.jsonl")]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run of two rounds."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        prepare(folder)
        patch.chdir(folder)
        run()
    return folder


def test_the_best_answer_is_paired_with_the_worst():
    """By hand: the first of equal ones; empty answers and ties make no pair, and neither does one text with itself."""
    row = {"prompt": "q"}
    pair = best_and_worst(row, ["a", "b", "c", "d", "e"], [1, 3, 0, 3, 0])
    assert pair == {"prompt": "q", "chosen": "b", "rejected": "c"}
    assert best_and_worst(row, ["a", " ", "b"], [1, 9, 2]) == {"prompt": "q", "chosen": "b", "rejected": "a"}
    assert best_and_worst(row, ["a", "b", ""], [1, 1, 0]) is None
    assert best_and_worst(row, ["", "\n"], [1, 0]) is None
    assert best_and_worst(row, ["a", "a"], [1, 0]) is None
    messages = [{"role": "user", "content": "q"}]
    assert best_and_worst({"prompt": messages}, ["a", "b"], [0, 1])["chosen"] == [{"role": "assistant", "content": "b"}]


def test_an_answer_s_reward_by_a_judge_is_the_number_of_answers_that_it_beats(folder):
    """By hand: lengths 1, 3, 2, 2; the two of length 2 are not told apart, and an empty answer is not compared."""
    wins = load_judge("judges.py:Longer", "prompts.jsonl")
    prompts = [{"prompt": "q"}, {"prompt": [{"role": "user", "content": "q"}]}, {"prompt": "q"}]
    assert wins(prompts, [["a", "bcd", "ef", "gh"], ["ab", "c"], ["", "a"]]) == [[0, 3, 1, 1], [1, 0], [0, 0]]
    assert wins(prompts[:1], [["a", "a"]]) == [[0, 0]]


def test_two_rounds_write_what_they_say(whole, monkeypatch):
    monkeypatch.chdir(whole)
    lines, score = rows("run/rounds.jsonl"), load_reward("letters.py:letters", "prompts.jsonl")
    assert [line["round"] for line in lines] == [1, 2]
    for number, line in enumerate(lines, 1):
        answers, pairs = (rows(f"run/round-{number}/{name}.jsonl") for name in ("answers", "pairs"))
        assert [row["prompt"] for row in answers] == [f"q{i}" for i in range(12)]
        rewards = score(answers, [row["answers"] for row in answers])
        assert rewards == [row["rewards"] for row in answers]
        assert line["reward"] == sum(map(sum, rewards)) / 24
        assert line["pairs"] == len(pairs) == sum(max(each) > min(each) for each in rewards)
        chosen, rejected = (score(pairs, [[pair[side]] for pair in pairs]) for side in ("chosen", "rejected"))
        assert all(better > worse for better, worse in zip(chosen, rejected, strict=True))
        assert 0 <= line["accuracy"] <= 1
        assert line["seed"] == generator_for(42, ROUND, number).initial_seed() % 2**32
    assert rows("run/round-1/answers.jsonl") != rows("run/round-2/answers.jsonl")


def test_a_round_is_what_align_does_with_its_pairs_from_the_model_before(folder, whole):
    """So the reference of round 2 is the model of round 1."""
    own = ("prompts", "reward", "batch_size", "gen_length", "steps", "block_length")
    training = {name: value for name, value in OPTIONS.items() if name not in own}
    training |= {"model_name_or_path": whole / "run/round-1", "dataset_name": whole / "run/round-2/pairs.jsonl"}
    training |= {"seed": rows(whole / "run/rounds.jsonl")[1]["seed"], "save_strategy": "no"}
    align.main([word for name, value in training.items() for word in (f"--{name}", str(value))])
    assert weights(folder / "run") == weights(whole / "run/round-2")


def weights(model: Path) -> bytes:
    return (model / "model.safetensors").read_bytes()


def raising(function, number: int = 1):
    """The function, but call `number` of it (from 1) ends the run before it does anything."""
    calls = []

    def called(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    return called


def kill(patch, moment: str, after_round: bool) -> None:
    """End the next start at a moment of the first round that it makes or, `after_round`, of the one after it."""
    number = 1 + after_round
    if moment == "sampling":
        killed_after(2 + 3 * after_round, patch)  # of three batches in a round
    elif moment == "judging":
        patch.setattr(recipe, "write_pairs", raising(recipe.write_pairs, number))
    elif moment == "pairs written":
        patch.setattr(PartFiles, "finish", raising(PartFiles.finish, number))
    elif moment == "answers written":
        patch.setattr(PartFiles, "remove_parts", raising(PartFiles.remove_parts, number))
    elif moment == "checkpoint":
        patch.setattr(vrpo.VRPOTrainer, "complete_later", raising(vrpo.VRPOTrainer.complete_later))
    elif moment == "training":
        patch.setattr(vrpo.VRPOTrainer, "training_step", raising(vrpo.VRPOTrainer.training_step, 4 * number))
    elif moment == "saving":
        patch.setattr(vrpo.VRPOTrainer, "save_state", raising(vrpo.VRPOTrainer.save_state, number))
    elif moment == "recording":
        patch.setattr(recipe, "line_of", raising(recipe.line_of, number))


MOMENTS = ("sampling", "judging", "pairs written", "answers written", "checkpoint", "training", "saving", "recording")


@pytest.mark.slow
def test_a_run_that_is_killed_in_its_second_round_again_and_again_ends_in_the_same_bytes(folder, whole, monkeypatch):
    """Each start comes a little further. Calls are counted in each start, and round 1 is made by the first one only."""
    for moment in MOMENTS:
        with monkeypatch.context() as patch:
            kill(patch, moment, after_round=moment == "sampling")
            with pytest.raises(KeyboardInterrupt):
                run(resume="true")
        assert len(rows("run/rounds.jsonl")) == 1
    run(resume="true")
    assert written(folder) == written(whole)


def test_a_model_that_was_saved_without_checkpoints_is_trained_again(folder, whole, monkeypatch):
    """Nothing tells how far it was trained, so that `align.py` would refuse to resume it."""
    with monkeypatch.context() as patch:
        kill(patch, "saving", after_round=False)
        with pytest.raises(KeyboardInterrupt):
            run(save_strategy="no")
    run(save_strategy="no", resume="true", rounds=1)
    assert weights(folder / "run/round-1") == weights(whole / "run/round-1")


@pytest.mark.slow
def test_adapters_are_trained_on_and_a_run_goes_on_after_a_round(folder, capsys):
    """A run of one round is continued by more rounds; one that is finished changes nothing."""
    adapters = {"use_peft": "true", "lora_r": 2, "max_steps": 2}
    run(rounds=1, **adapters)
    with pytest.raises(RecipeError, match="output_dir=run already holds a run: set resume to continue it, overwrite"):
        run(**adapters)
    run(resume="true", **adapters)
    assert "model of 2 rounds is run/round-2" in capsys.readouterr().out
    found = written(folder)
    first, second = (found[f"round-{number}/adapter_model.safetensors"] for number in (1, 2))
    assert first != second
    assert found["round-2/ref/adapter_model.safetensors"] == first  # the reference: the model at the round's start
    run(resume="true", **adapters)
    assert "is finished: all of its 2 rounds are done, and nothing was changed" in capsys.readouterr().out
    assert written(folder) == found


def test_a_judge_takes_the_place_of_a_reward(folder):
    run(reward=None, judge="judges.py:Longer", rounds=1, max_steps=1)
    pairs = rows("run/round-1/pairs.jsonl")
    assert pairs
    assert all(len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs)
    assert rows("run/rounds.jsonl")[0]["reward"] is None  # wins of answers over each other say nothing of the model


def test_overwrite_replaces_the_rounds_and_nothing_else(folder, whole):
    shutil.copytree(whole / "run", "run")
    notes = folder / "run" / "notes.txt"
    notes.write_text("mine")
    before = written(folder)
    with pytest.raises(ValueError, match=r"x.jsonl: columns are \['question'\]; needed is 'prompt'"):
        run(overwrite="true", prompts=write(folder / "x.jsonl", [{"question": "q"}]))
    with pytest.raises(RecipeError, match="overwrite would delete the model that the run starts from"):
        run(overwrite="true", model_name_or_path="run/round-1")
    assert written(folder) == before
    run(overwrite="true", rounds=1, seed=7)
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        ".run.lock",
        "notes.txt",
        "round-1",
        "rounds.jsonl",
    ]
    assert weights(folder / "run/round-1") != weights(whole / "run/round-1")
    assert notes.read_text() == "mine"


def write(path: Path, lines: list[dict]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_reward_rises_from_round_to_round(tmp_path, monkeypatch):
    """Letters in samples of an untrained model, before and after 20 steps: above 4 standard errors of the rise."""
    prepare(tmp_path, prompts=64)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe, "start_of", raising(recipe.start_of, 2))  # the second training is not needed
    with pytest.raises(KeyboardInterrupt):
        run(max_steps=20, per_device_train_batch_size=16, batch_size=64, save_strategy="no", loss_type="sigmoid")
    before, after = (
        torch.tensor([reward for row in rows(f"run/round-{number}/answers.jsonl") for reward in row["rewards"]])
        for number in (1, 2)
    )
    error = (before.var() / len(before) + after.var() / len(after)).sqrt()
    assert after.mean() - before.mean() > 4 * error


def test_rounds_that_do_not_belong_together_are_refused(folder, whole):
    shutil.copytree(whole / "run", "run")
    shutil.rmtree("run/round-1")
    with pytest.raises(
        RecipeError, match=r"run/round-2 is there, but round 1 is not finished: delete the rounds after"
    ):
        run(resume="true")
    shutil.rmtree("run/round-2")
    run(resume="true", rounds=1)  # it is made again, and so is its line
    assert [line["round"] for line in rows("run/rounds.jsonl")] == [1]
    assert weights(folder / "run/round-1") == weights(whole / "run/round-1")


def test_a_round_without_pairs_stops_and_goes_on_with_another_reward(folder, whole, monkeypatch):
    message = r"^round 1: no pairs, since the answers to each of the 12 prompts have equal rewards, .*Set more samples"
    with pytest.raises(RecipeError, match=message):
        run(reward="equal.py:equal")
    assert not Path("run/round-1/pairs.jsonl").exists()
    sampled = []
    monkeypatch.setattr(Completions, "sample", sampled.append)
    monkeypatch.setattr(recipe.vrpo, "VRPOTrainer", None)
    with pytest.raises(AttributeError, match="NoneType"):  # it comes to training without sampling anything
        run(resume="true")
    assert not sampled
    assert Path("run/round-1/pairs.jsonl").read_bytes() == (whole / "run/round-1/pairs.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reward": "bad.py:some"},
            r"reward='bad.py:some' must .* returned nan for row 3 .* prompts.jsonl and the ans",
        ),
        ({"reward": "bad.py:words"}, r"reward='bad.py:words' must return a finite number, and returned '.*' for row 0"),
        ({"reward": "bad.py:fails"}, r"reward='bad.py:fails' failed with KeyError: 'missing' \(line 10\), for row 0"),
        ({"reward": "bad.py:none"}, "reward='bad.py:none': bad.py has no function 'none'"),
        ({"reward": "absent.py:none"}, "reward='absent.py:none' must be FILE.py:function of a file here"),
        ({"reward": None}, r"give either reward \(FILE.py:function\) or judge"),
        ({"judge": "judges.py:Longer"}, r"give either reward \(FILE.py:function\) or judge"),
        ({"reward": None, "judge": "judges.py:Short"}, r"judge='judges.py:Short' returned 1 verdicts for 1\d comparis"),
        ({"reward": None, "judge": "judges.py:Unsure"}, r"must return 0, 1 or -1, and returned 0.5 for two .* row 0 "),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"model_name_or_path": "./absent"}, "absent does not exist"),
        ({"prompts": None}, "prompts is missing: it must be text"),
        ({"samples": 1}, "samples=1 must be at least 2"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"dataset_name": "pairs.jsonl"}, "dataset_name has no meaning here"),
        ({"tokenizer": "bytes"}, "tokenizer has no meaning here"),
        ({"resume": "true", "overwrite": "true"}, "resume and overwrite are both set"),
    ],
)
def test_what_cannot_work_is_named(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)
    assert not Path("run/round-1/pairs.jsonl").exists()


@pytest.mark.slow
def test_two_processes_make_the_rounds_of_one(folder, whole):
    """To rounding, after which a second round may sample other answers."""
    paths = {name: folder / OPTIONS[name] for name in ("model_name_or_path", "prompts", "output_dir", "reward")}
    options = OPTIONS | paths | {"per_device_train_batch_size": 2, "expected_processes": 2}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    output = launch_recipe("--config_file", "recipes/accelerate/ddp_cpu.yaml", "recipes/iterate.py", *words)
    assert output.returncode == 0, output.stderr[-3000:]
    assert output.stdout.count("round 2 of 2") == 1
    one, two = whole / "run", folder / "run"
    assert len(rows(two / "rounds.jsonl")) == 2
    for name in ("answers.jsonl", "pairs.jsonl"):
        assert (one / "round-1" / name).read_bytes() == (two / "round-1" / name).read_bytes()
    ours, theirs = (load_file(run / "round-1/model.safetensors") for run in (one, two))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_engines_that_shard_are_refused(folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match="each process samples with the whole model: launch with recipes/accelerate"):
        recipe.check_options(recipe.Arguments(prompts="a", reward="b"), recipe.ModelConfig(model_name_or_path="c"))
