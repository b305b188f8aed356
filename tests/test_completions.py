"""Completions of many prompts: a killed run goes on, loses nothing and repeats nothing, and processes do not matter."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import date
from typing import get_type_hints

import pytest
import torch
from conftest import ROOT, tiny_model
from datasets import Dataset
from test_sft import IDS, TOKENIZER
from transformers import HfArgumentParser

import llada
from llada.cli.arguments import SamplerOptions, override
from llada.cli.chat import Chat
from llada.cli.parts import PartFiles
from llada.data.tokenizer import byte_tokenizer
from llada.data.turns import KEY
from llada.errors import RecipeError
from llada.recipes import generate
from llada.sampling.block_cache import SamplerStats
from llada.sampling.presets import preset
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import answers
from vrpo.recipes import make_pairs


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
    generate.main(command(saved, "whole.jsonl"))
    whole = [json.loads(line) for line in (saved / "whole.jsonl").read_text().splitlines()]
    assert [row["id"] for row in whole] == list(range(7))
    assert set(whole[0]) == {"prompt", "answer", "id", "completion"}
    with monkeypatch.context() as patch:
        killed_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            generate.main(command(saved, "cut.jsonl"))
    assert not (saved / "cut.jsonl").exists()
    with pytest.raises(ValueError, match=r"cut.jsonl.part0 was made with seed=0, and this run has 1: go on with"):
        generate.main(command(saved, "cut.jsonl", "--seed", "1"))
    model = tiny_model(seed=1, dtype=torch.float32, max_sequence_length=64, **IDS)
    model.save_pretrained(saved / "other")
    (saved / "model").rename(saved / "first")
    TOKENIZER.save_pretrained(saved / "other")
    (saved / "other").rename(saved / "model")
    with pytest.raises(ValueError, match="cut.jsonl.part0 was made with weights="):
        generate.main(command(saved, "cut.jsonl"))
    (saved / "model").rename(saved / "other")
    (saved / "first").rename(saved / "model")
    generate.main(command(saved, "cut.jsonl"))
    assert (saved / "cut.jsonl").read_text() == (saved / "whole.jsonl").read_text()
    assert not list(saved.glob("*.part*"))


def test_pairs_of_a_killed_run_are_those_of_a_whole_one(saved, monkeypatch):
    (saved / "odd.py").write_text("def odd(row, answer):\n    return len(answer) % 2 == 1\n")
    recipe, options = make_pairs, ("--verifier", f"{saved / 'odd.py'}:odd", "--samples", "3")
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


@pytest.mark.slow
def test_two_processes_write_what_one_does(saved):
    generate.main(command(saved, "one.jsonl"))
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
    generate.main(command(saved, "out.jsonl", "--temperature", "0"))
    rows = [json.loads(line) for line in (saved / "out.jsonl").read_text().splitlines()]
    assert [row["completion"] for row in rows] == [""] * 7
    assert (
        "7 of 7 answers are empty, nothing before their end: rows 0, 1, 2, 3, 4, 5, 6 (counted from 0)"
        in capsys.readouterr().out
    )
    with pytest.raises(RecipeError, match="^no pairs: 0 of 28 answers are right"):
        make_pairs.main(command(saved, "pairs.jsonl", "--temperature", "0"))
    assert not (saved / "pairs.jsonl").exists()


def test_parts_hold_any_text_and_leave_other_files_alone(tmp_path):
    """Line separators that are not a newline, and a name that is a pattern."""
    files, texts = PartFiles(tmp_path / "o[1].jsonl", {"seed": 0}), {0: "a\u2028b", 2: "c\x85d\r\ne", 1: "é"}
    (tmp_path / "o[1].jsonl.parted").write_text("mine")
    for process, index in enumerate(texts):
        files.append(process, {index: texts[index]})
    assert files.done() == texts
    files.finish([{"completion": texts[index]} for index in range(3)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o[1].jsonl", "o[1].jsonl.parted"]
    lines = (tmp_path / "o[1].jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line)["completion"] for line in lines[:-1]] == [texts[0], texts[1], texts[2]]


def test_nothing_after_eos_is_part_of_an_answer():
    """One block, so that the model writes on after its EOS: the same text as with blocks that stop there."""
    model = tiny_model(dtype=torch.float32, **IDS)
    prompt, settings = "ab", SamplerSettings(gen_length=16, steps=16, block_length=16, temperature=1.5)
    text = TOKENIZER(prompt, add_special_tokens=False).input_ids
    seen = 0
    for seed in range(20):
        draw = torch.Generator().manual_seed(seed)
        ids = llada.generate(model, torch.tensor([text]), None, settings, generator=draw)[0, len(text) :].tolist()
        (answer,) = answers(model, TOKENIZER, [prompt], settings, 1, torch.Generator().manual_seed(seed))
        end = ids.index(IDS["eos_token_id"]) if IDS["eos_token_id"] in ids else len(ids)
        assert answer == TOKENIZER.decode(ids[:end], skip_special_tokens=True)
        seen += set(ids[end:]) > {IDS["eos_token_id"]}
    assert seen


@pytest.mark.parametrize(("turns", "expected"), [(True, "ab"), (False, "abcd")])
def test_an_answer_ends_with_its_turn_if_the_model_speaks_in_turns(monkeypatch, turns, expected):
    """What a model writes between the end of its turn and EOS; to a model of plain text, that token means nothing."""
    tokenizer = byte_tokenizer()
    tokenizer.init_kwargs[KEY] = turns
    written = tokenizer("ab<|eot_id|>cd<|endoftext|>ef", add_special_tokens=False, return_tensors="pt").input_ids
    model = tiny_model(dtype=torch.float32, n_layers=1, **IDS)

    def writes(model, ids, *args, **kwargs):
        return torch.cat([ids, written], -1), SamplerStats()

    monkeypatch.setattr("llada.sampling.text.generate", writes)
    assert list(answers(model, tokenizer, ["q"], SamplerSettings(), 1)) == [expected]
    monkeypatch.setattr("llada.cli.chat.generate", writes)
    assert Chat(model, tokenizer, SamplerSettings(), plain=not turns).say("q")[0] == expected


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_no_prompts_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} must be at least 1"):
        list(answers(tiny_model(n_layers=1, **IDS), TOKENIZER, ["q"], SamplerSettings(), batch_size))


def test_special_ids_that_a_config_lacks_are_the_tokenizer_s(saved, capsys):
    """Published configs have no eot_token_id, which the authors' settings need."""
    file = saved / "model" / "config.json"
    config = json.loads(file.read_text())
    del config["eot_token_id"]
    file.write_text(json.dumps(config))
    generate.main(command(saved, "out.jsonl", "--preset", "llada-1.5/gsm8k"))
    assert len((saved / "out.jsonl").read_text().splitlines()) == 7


def test_output_is_not_overwritten_and_bad_input_is_named(saved):
    (saved / "there.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match=r"there\.jsonl exists: set overwrite"):
        generate.main(command(saved, "there.jsonl"))

    def refused(message: str, *options: str, recipe=generate) -> None:
        with pytest.raises(ValueError, match=message):
            recipe.main(command(saved, "there.jsonl", "--overwrite", "true", *options))
        assert (saved / "there.jsonl").read_text() == "mine\n"

    refused("gen_length=9 must be a multiple of block_length=8, such as 8 or 16", "--gen_length", "9")
    refused("batch_size=0 must be at least 1", "--batch_size", "0")
    refused(r"'llada-1.5/mmlu' is unknown: of llada-1.5 there are \['alignbench'", "--preset", "llada-1.5/mmlu")
    refused(r"prompts.jsonl is the file of the prompts", "--output", str(saved / "prompts.jsonl"))
    refused("samples=1 must be at least 2", "--samples", "1", recipe=make_pairs)
    for bad, message in (
        ({"prompt": ""}, "row 1 .* has an empty 'prompt'"),
        ({"prompt": "x" * 57}, "row 1 .* has a prompt of 57 tokens; allowed are 1 to 56"),
        ({"prompt": f"x{TOKENIZER.mask_token}"}, "row 1 .* has text in 'prompt' that spells the mask token"),
        ({"prompt": f"x{TOKENIZER.eos_token}"}, "row 1 .* has text in 'prompt' that spells a special token"),
        ({"prompt": [{"role": "human", "content": "x"}]}, "row 1 .* has messages in 'prompt' of a role that the chat"),
        ({"prompt": 5}, "row 1 .* has a number in 'prompt', where text or a list of messages belongs"),
    ):
        (saved / "prompts.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps(bad) + "\n")
        refused(message)
    for row, message in (
        ({"question": "a"}, r"columns are \['question'\]; needed is 'prompt'"),
        ({"prompt": "a", "completion": "b"}, "has a column 'completion' already"),
    ):
        (saved / "prompts.jsonl").write_text(json.dumps(row) + "\n")
        refused(message)
    # A date in text stays text; one of parquet is no text.
    Dataset.from_list([{"prompt": "a", "date": date(2024, 5, 1)}]).to_parquet(saved / "dated.parquet")
    refused("row 0 .* cannot be written as JSON", "--prompts", str(saved / "dated.parquet"))
    (saved / "prompts.jsonl").write_text(json.dumps({"prompt": "a"}) + "\n")
    refused("verifier=same_as_answer needs 'answer'", recipe=make_pairs)


def test_flags_replace_single_settings_of_a_preset():
    base = preset("llada-1.5/gsm8k")
    assert (base.gen_length, base.block_length, base.confidence_eos_eot_inf) == (256, 16, True)
    words = ["--cache", "dual", "--steps", "128", "--grow", "--stop_at_eos", "false"]
    (options,) = HfArgumentParser(SamplerOptions).parse_args_into_dataclasses(words)
    expected = {"cache": "dual", "steps": 128, "grow": True, "stop_at_eos": False}
    assert override(base, options) == replace(base, **expected)


def test_every_setting_is_an_option():
    """Of the same name and type; None where it is not given."""
    settings, options = get_type_hints(SamplerSettings), get_type_hints(SamplerOptions)
    assert {name: kind | None for name, kind in settings.items()} == options


def test_a_rule_replaces_the_other_and_none_is_no_cache():
    saved = SamplerSettings(threshold=0.9, cache="dual", refresh_every=2)
    assert override(saved, SamplerOptions(factor=1.0)) == SamplerSettings(factor=1.0, cache="dual", refresh_every=2)
    assert override(saved, SamplerOptions(cache="none")) == SamplerSettings(threshold=0.9)


# Length, block, and whether EOS is never predicted or committed last: the published tables, by hand.
PUBLISHED = """
llada-base/gsm8k 1024 1024 - -      llada-base/bbh 1024 1024 - -         llada-instruct/mmlu 3 3 - -
llada-instruct/mmlu_pro 256 256 - - llada-instruct/hellaswag 3 3 - -     llada-instruct/arc_challenge 512 512 - -
llada-instruct/gsm8k 512 512 - +    llada-instruct/math 512 512 - +      llada-instruct/gpqa 64 64 - +
llada-instruct/mbpp 256 256 - +     llada-instruct/humaneval 512 512 + - llada-instruct-blocks/gsm8k 256 8 - -
llada-instruct/poem_forward 28 28 + - llada-instruct/poem_reversal 28 28 + -
llada-instruct-blocks/math 512 64 - -   llada-instruct-blocks/ifeval 512 512 - +
llada-instruct-blocks/arena_hard 1024 128 - + llada-instruct-blocks/alignbench 512 32 - +
llada-instruct-blocks/mt_bench 512 32 - + llada-1.5/gsm8k 256 16 - +     llada-1.5/math 1024 128 - +
llada-1.5/gpqa 256 16 - -           llada-1.5/humaneval 512 32 - +       llada-1.5/mbpp 512 32 - +
llada-1.5/ifeval 256 16 - +         llada-1.5/arena_hard 1024 128 - +    llada-1.5/alignbench 512 32 - +
llada-1.5/mt_bench 256 16 - +
"""


@pytest.mark.parametrize("row", list(zip(*[iter(PUBLISHED.split())] * 5, strict=True)), ids=lambda row: row[0])
def test_presets_are_the_published_settings(row):
    name, length, block, never, last = row
    expected = SamplerSettings(
        steps=int(length), gen_length=int(length), block_length=int(block), logits_eos_inf=never == "+",
        confidence_eos_eot_inf=last == "+",
    )  # fmt: skip
    assert preset(name) == expected
    preset(name).check_blocks()
