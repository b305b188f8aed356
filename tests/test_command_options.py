"""Options of the commands that write answers: each bad value is named before a model is loaded or a file is touched."""

import json
import os

import option_rows
import pytest
from test_completions import command, saved  # noqa: F401  (a fixture)

import llada.cli.completions
from llada.checks import check_fields, own_fields
from llada.cli.arguments import CompletionArguments, SamplerOptions
from llada.cli.completions import Completions
from llada.errors import RecipeError
from vrpo.recipes import make_pairs

CASES = [(name, value) for name, (_, values) in option_rows.COMPLETIONS.items() for value in values]


def arguments(folder, **changes) -> CompletionArguments:
    paths = {"model": "model", "prompts": "prompts.jsonl", "output": "out.jsonl"}
    return CompletionArguments(**({name: str(folder / path) for name, path in paths.items()} | changes))


def test_every_option_has_a_row_whose_good_values_pass(tmp_path):
    assert set(option_rows.COMPLETIONS) == set(own_fields(CompletionArguments))
    for name, (values, _) in option_rows.COMPLETIONS.items():
        for value in values:
            check_fields(arguments(tmp_path, **{name: value}))


@pytest.mark.parametrize(("name", "value"), CASES)
def test_a_bad_option_is_named(saved, monkeypatch, name, value):  # noqa: F811
    monkeypatch.setattr(llada.cli.completions, "load_config", None)
    before = sorted(saved.iterdir())
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        Completions(arguments(saved, **{name: value}), SamplerOptions())
    assert sorted(saved.iterdir()) == before


@pytest.mark.parametrize("samples", [0, -1, 1.5, float("nan"), "4", True, None])
def test_a_bad_number_of_samples_is_named(saved, samples):  # noqa: F811
    with pytest.raises(ValueError, match="samples=.* must be .*at least 1"):
        Completions(arguments(saved), SamplerOptions(), samples)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("prompts.jsonl", "is the file of the prompts"),
        ("./sub/../prompts.jsonl", "is the file of the prompts"),
        ("link.jsonl", "is the file of the prompts"),
        ("model", "is a directory: name a file"),
        ("model/", "is a directory: name a file"),
        ("prompts.jsonl/out.jsonl", "cannot be written: Not a directory"),
        ("/proc/out.jsonl", r"output=/proc/out\.jsonl cannot be written"),
        ("/dev/null/out.jsonl", "cannot be written: Not a directory"),
    ],
)
def test_an_output_that_cannot_be_written_is_named(saved, monkeypatch, output, message):  # noqa: F811
    monkeypatch.setattr(llada.cli.completions, "load_config", None)
    (saved / "sub").mkdir()
    (saved / "link.jsonl").symlink_to(saved / "prompts.jsonl")
    content = (saved / "prompts.jsonl").read_text()
    with pytest.raises(RecipeError, match=message):
        Completions(arguments(saved, output=os.path.join(saved, output), overwrite=True), SamplerOptions())
    assert (saved / "prompts.jsonl").read_text() == content


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "-1"], "seed=-1 must be between 0 and 9223"),
        (["--seed", "nan"], "invalid int value: 'nan'"),
        (["--limit", "1e3"], "invalid int value: '1e3'"),
        (["--batch_size", ""], "invalid int value: ''"),
        (["--preset", "none"], "'none'"),
        (["--overwrite", "maybe"], "maybe"),
        (["--device", "cuda"], "--device"),
        (["--samples", "nan"], "invalid int value: 'nan'"),
        (["--samples", "1"], "samples=1 must be at least 2"),
        (["--pairs_per_prompt", "0"], "pairs_per_prompt=0 at least 1"),
        (["--verifier", "same"], "verifier='same' must be one of"),
        (["--verifier", ""], "verifier='' must be one of"),
        (["--model", "./nowhere"], "nowhere does not exist"),
        (["--prompts", "./nowhere.jsonl"], "no such data file"),
    ],
)
def test_bad_options_on_the_command_line_are_named(saved, options, message):  # noqa: F811
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_pairs.main(command(saved, "out.jsonl", *options))
    assert not list(saved.glob("out.jsonl*"))


@pytest.mark.parametrize(
    ("verifier", "answers", "message"),
    [
        ("same_as_answer", ["1", None], r"row 1 \(counted from 0\) has no value in 'answer'"),
        ("same_last_number", ["1", "one"], r"row 1 \(counted from 0\) has no number in 'answer': 'one'"),
    ],
)
def test_rows_without_a_reference_answer_are_named(saved, verifier, answers, message):  # noqa: F811
    rows = [json.dumps({"prompt": "q", "answer": answer}) for answer in answers]
    (saved / "prompts.jsonl").write_text("\n".join(rows) + "\n")
    with pytest.raises(RecipeError, match=message):
        make_pairs.main(command(saved, "out.jsonl", "--verifier", verifier))
    assert not list(saved.glob("out.jsonl*"))
