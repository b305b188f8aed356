"""Completions of many prompts: a killed run goes on, loses nothing and repeats nothing, and processes do not matter."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, load_script, tiny_model
from test_trainer import IDS, TOKENIZER
from transformers import HfArgumentParser

from llada.completions import PartFiles
from llada.presets import PRESETS, preset
from llada.sampler_settings import SamplerFlags, override


@pytest.fixture
def saved(tmp_path):
    tiny_model(dtype=torch.float32, max_sequence_length=64, **IDS).save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    rows = [{"prompt": f"question {index}", "answer": "x", "id": index} for index in range(7)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def command(folder, name: str, *more: str) -> list[str]:
    paths = {"model": "model", "prompts": "prompts.jsonl", "output": name}
    words = [word for option, path in paths.items() for word in (f"--{option}", str(folder / path))]
    short = ["--gen_length", "8", "--steps", "8", "--block_length", "8", "--batch_size", "2", "--temperature", "1"]
    return [*words, *short, *more]


def killed_after(batches: int, monkeypatch) -> None:
    """Stop the next run after some batches, in the middle of a line."""
    append, calls = PartFiles.append, []

    def killed(self, process, found):
        append(self, process, found)
        calls.append(found)
        if len(calls) == batches:
            with open(self.parts()[0], "a") as file:
                file.write('{"index": 4, "comp')
            raise KeyboardInterrupt

    monkeypatch.setattr(PartFiles, "append", killed)


def test_a_killed_run_continues(saved, monkeypatch):
    """The same completions as without, drawn at temperature 1: a batch's random numbers are its own."""
    recipe = load_script("recipes/generate")
    recipe.main(command(saved, "whole.jsonl"))
    whole = [json.loads(line) for line in (saved / "whole.jsonl").read_text().splitlines()]
    assert [row["id"] for row in whole] == list(range(7))
    assert set(whole[0]) == {"prompt", "answer", "id", "completion"}
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            recipe.main(command(saved, "cut.jsonl"))
    assert not (saved / "cut.jsonl").exists()
    with pytest.raises(ValueError, match=r"cut.jsonl.part0 was made with seed=0, and this run has 1: go on with"):
        recipe.main(command(saved, "cut.jsonl", "--seed", "1"))
    recipe.main(command(saved, "cut.jsonl"))
    assert (saved / "cut.jsonl").read_text() == (saved / "whole.jsonl").read_text()
    assert not list(saved.glob("*.part*"))


def test_pairs_of_a_killed_run_are_those_of_a_whole_one(saved, monkeypatch):
    (saved / "odd.py").write_text("def odd(row, answer):\n    return len(answer) % 2 == 1\n")
    recipe, options = load_script("recipes/make_pairs"), ("--verifier", f"{saved / 'odd.py'}:odd", "--samples", "3")
    recipe.main(command(saved, "whole.jsonl", *options))
    whole = [json.loads(line) for line in (saved / "whole.jsonl").read_text().splitlines()]
    assert len(whole) > 3
    assert all(len(pair["chosen"]) % 2 == 1 and len(pair["rejected"]) % 2 == 0 for pair in whole)
    with monkeypatch.context() as patch:
        killed_after(4, patch)
        with pytest.raises(KeyboardInterrupt):
            recipe.main(command(saved, "cut.jsonl", *options))
    recipe.main(command(saved, "cut.jsonl", *options))
    assert (saved / "cut.jsonl").read_text() == (saved / "whole.jsonl").read_text()


def test_two_processes_write_what_one_does(saved):
    load_script("recipes/generate").main(command(saved, "one.jsonl"))
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", "recipes/accelerate/ddp_cpu.yaml", "recipes/generate.py"]
    subprocess.run([*launch, *command(saved, "two.jsonl")], cwd=ROOT, check=True, capture_output=True, timeout=240)
    assert (saved / "two.jsonl").read_text() == (saved / "one.jsonl").read_text()


def test_answers_of_eos_alone_are_kept_and_named(saved, capsys):
    """A model that predicts EOS everywhere: completions are empty, and said to be; no pair is made of them."""
    model = tiny_model(dtype=torch.float32, max_sequence_length=64, **IDS)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    body = model.model.transformer
    for constant in (body.wte.weight, body.ln_f.weight, body.ff_out.weight[IDS["eos_token_id"]]):
        torch.nn.init.ones_(constant)
    model.save_pretrained(saved / "model")
    load_script("recipes/generate").main(command(saved, "out.jsonl", "--temperature", "0"))
    rows = [json.loads(line) for line in (saved / "out.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == [""] * 7
    assert "7 of 7 answers are empty, EOS alone: rows 0, 1, 2, 3, 4, 5, 6 (counted from 0)" in capsys.readouterr().out
    load_script("recipes/make_pairs").main(command(saved, "pairs.jsonl", "--temperature", "0"))
    assert (saved / "pairs.jsonl").read_text() == ""


def test_output_is_not_overwritten_and_bad_input_is_named(saved):
    recipe = load_script("recipes/generate")
    (saved / "there.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match=r"there\.jsonl exists: set overwrite"):
        recipe.main(command(saved, "there.jsonl"))
    with pytest.raises(ValueError, match="gen_length=9 must be a multiple of block_length=8, such as 8 or 16"):
        recipe.main(command(saved, "there.jsonl", "--gen_length", "9", "--overwrite", "true"))
    with pytest.raises(ValueError, match=r"\{'batch_size': 0\}: must be at least 1"):
        recipe.main(command(saved, "there.jsonl", "--batch_size", "0", "--overwrite", "true"))
    with pytest.raises(ValueError, match=r"preset='llada-1.5/mmlu' is unknown: of llada-1.5 there are \['alignbench'"):
        recipe.main(command(saved, "there.jsonl", "--preset", "llada-1.5/mmlu", "--overwrite", "true"))
    for bad, length in (("", 0), ("x" * 57, 57)):
        (saved / "prompts.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": bad}) + "\n")
        with pytest.raises(ValueError, match=f"the prompt of row 1 .* has {length} tokens; allowed are 1 to 56"):
            recipe.main(command(saved, "there.jsonl", "--overwrite", "true"))
    (saved / "prompts.jsonl").write_text('{"question": "a"}\n')
    with pytest.raises(ValueError, match=r"columns are \['question'\]; needed is 'prompt'"):
        recipe.main(command(saved, "there.jsonl", "--overwrite", "true"))
    assert (saved / "there.jsonl").read_text() == "mine\n"


def test_flags_replace_single_settings_of_a_preset():
    base = preset("llada-1.5/gsm8k")
    assert (base.gen_length, base.block_length, base.confidence_eos_eot_inf) == (256, 16, True)
    words = ["--cache", "dual", "--steps", "128", "--grow", "--stop_at_eos", "false"]
    (flags,) = HfArgumentParser(SamplerFlags).parse_args_into_dataclasses(words)
    expected = {"cache": "dual", "steps": 128, "grow": True, "stop_at_eos": False}
    assert override(base, flags) == replace(base, **expected)


@pytest.mark.parametrize("name", [f"{model}/{benchmark}" for model in PRESETS for benchmark in PRESETS[model]])
def test_presets_commit_one_token_a_step_in_whole_blocks(name):
    settings = preset(name)
    settings.check_blocks()
    assert settings.steps == settings.gen_length
