"""Completions of many prompts: a killed run goes on, loses nothing and repeats nothing."""

import json

import pytest
import torch
from conftest import load_script, tiny_model
from test_trainer import IDS, TOKENIZER

from llada.completions import PartFiles
from llada.inputs import RecipeError


@pytest.fixture
def saved(tmp_path):
    tiny_model(dtype=torch.float32, max_sequence_length=64, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"question {index}", "id": index} for index in range(7)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder, name: str, *more: str) -> list[str]:
    paths = [
        "--model",
        str(folder / "model"),
        "--prompts",
        str(folder / "prompts.jsonl"),
        "--output",
        str(folder / name),
    ]
    return [*paths, "--gen_length", "8", "--steps", "8", "--block_length", "8", "--batch_size", "2", *more]


def test_a_killed_run_continues(saved, monkeypatch):
    """Killed after two batches, in the middle of a line: the same completions as without."""
    recipe = load_script("recipes/generate")
    recipe.main(command(saved, "whole.jsonl"))
    whole = [json.loads(line) for line in (saved / "whole.jsonl").read_text().splitlines()]
    assert [row["id"] for row in whole] == list(range(7))
    assert set(whole[0]) == {"prompt", "id", "completion"}
    append, calls = PartFiles.append, []

    def killed(self, process, rows):
        append(self, process, rows)
        calls.append(rows)
        if len(calls) == 2:
            with open(self.parts()[0], "a") as file:
                file.write('{"prompt": "question 4", "comp')
            raise KeyboardInterrupt

    monkeypatch.setattr(recipe.PartFiles, "append", killed)
    with pytest.raises(KeyboardInterrupt):
        recipe.main(command(saved, "cut.jsonl"))
    assert not (saved / "cut.jsonl").exists()
    monkeypatch.setattr(recipe.PartFiles, "append", append)
    recipe.main(command(saved, "cut.jsonl"))
    assert (saved / "cut.jsonl").read_text() == (saved / "whole.jsonl").read_text()
    assert not list(saved.glob("*.part*"))


def test_output_is_not_overwritten_and_bad_input_is_named(saved):
    recipe = load_script("recipes/generate")
    (saved / "there.jsonl").write_text("mine\n")
    with pytest.raises(RecipeError, match=r"there\.jsonl exists: set overwrite"):
        recipe.main(command(saved, "there.jsonl"))
    assert (saved / "there.jsonl").read_text() == "mine\n"
    with pytest.raises(ValueError, match="gen_length=9 must be a multiple of block_length=8, such as 8 or 16"):
        recipe.main(command(saved, "x.jsonl", "--gen_length", "9"))
    (saved / "prompts.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(RecipeError, match=r"columns are \['question'\]; needed is 'prompt'"):
        recipe.main(command(saved, "x.jsonl"))


def test_parts_of_several_processes_are_joined_in_order(tmp_path):
    files = PartFiles(tmp_path / "out.jsonl")
    files.append(0, [{"index": 0, "a": 1}, {"index": 2, "a": 3}])
    files.append(1, [{"index": 1, "a": 2}])
    assert sorted(files.done()) == [0, 1, 2]
    files.join()
    assert [json.loads(line)["a"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [1, 2, 3]
