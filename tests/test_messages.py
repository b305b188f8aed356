"""What a user reads after a mistake: what is wrong, where, and what to do; and nothing runs into it."""

import io
import os
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, tiny_model
from test_sft import IDS, TOKENIZER
from tqdm import tqdm
from transformers import AutoConfig
from transformers.trainer_utils import align_special_tokens
from trl import ModelConfig

import llada.cli.arguments
from llada.checks import check_fields
from llada.cli import failure
from llada.cli.arguments import CompletionArguments, saying
from llada.cli.checkpoint import pinned_config
from llada.cli.loading import load_model, new_config, peft_config_of
from llada.cli.recipe import RecipeArguments, RecipeParser, parse
from llada.cli.train import check_evaluated, loggers_named
from llada.data.loading import load_rows
from llada.data.tokenizer import load_tokenizer
from llada.errors import DataError, RecipeError
from llada.evaluation import load_function, load_verifier
from llada.training.inputs import name_beginning
from llada.training.sft import MaskedDiffusionConfig
from vrpo.rollouts import load_reward


def written(folder, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_misspelled_option_is_named_with_the_one_that_was_meant():
    with pytest.raises(RecipeError, match="the command line: --datset_name is no option .did you mean --dataset_name"):
        parse((RecipeArguments,), ["--datset_name", "x"])
    with pytest.raises(RecipeError, match="--use_lora is no option .did you mean --use_peft"):  # and not --use_rslora
        parse((RecipeArguments, ModelConfig), ["--use_lora", "true"])
    with pytest.raises(RecipeError, match="--xyz is no option .--help lists"):  # near to none
        parse((RecipeArguments,), ["--xyz=1"])
    with pytest.raises(RecipeError, match="'pairs.jsonl' belongs to no option"):
        parse((RecipeArguments,), ["--resume", "true", "pairs.jsonl"])


def test_the_parser_of_commands_names_a_misspelled_option_too():
    parser = RecipeParser((CompletionArguments,))
    with pytest.raises(RecipeError, match="--modle is no option .did you mean --model"):
        parser.parse_args_into_dataclasses(["--modle", "x"])


def test_a_key_of_the_yaml_file_is_blamed_on_the_file(tmp_path):
    file = written(tmp_path, "mine.yaml", "datset_name: x\n")
    with pytest.raises(RecipeError, match=f"^{file}: datset_name is no option .did you mean dataset_name.*$"):
        parse((RecipeArguments,), ["--config", file, "--dataset_name", "y"])


def test_a_file_that_is_no_yaml_is_named_with_the_line(tmp_path):
    file = written(tmp_path, "bad.yaml", "resume: true\n  overwrite: true\n")
    with pytest.raises(RecipeError, match="bad.yaml is no YAML: mapping values.*line 2") as found:
        parse((RecipeArguments,), ["--config", file])
    assert isinstance(found.value.__cause__, yaml.YAMLError)


def test_an_option_that_is_not_given_is_missing():
    with pytest.raises(ValueError, match="model is missing: it must be text"):
        check_fields(CompletionArguments())


def test_a_name_that_is_no_directory_and_not_on_the_hub_is_named():
    with pytest.raises(OSError, match="nobody/nothing is no directory here, and was not found on the hub"):
        pinned_config("nobody/nothing", None)
    with pytest.raises(OSError, match="nobody/nothing is no directory here, and was not found on the hub"):
        load_tokenizer("nobody/nothing")


def test_a_recipe_refuses_a_model_of_another_family(tmp_path):
    AutoConfig.for_model("gpt2", n_embd=8, n_layer=1, n_head=1).save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="is a gpt2 model, not one of the families.*docs/checkpoints.md"):
        load_model(RecipeArguments(), ModelConfig(model_name_or_path=str(tmp_path)), 0)


def test_a_directory_that_is_no_dataset_and_a_name_that_is_none_are_named(tmp_path):
    written(tmp_path, "a.json", '{"a": ')
    with pytest.raises(DataError, match="is a directory that holds no dataset that can be loaded"):
        load_rows(str(tmp_path))
    with pytest.raises(DataError, match="nobody/nothing is no file here and no hub dataset that can be loaded"):
        load_rows("nobody/nothing")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_r": 0}, "lora_r=0 must be at least 1"),
        ({"lora_dropout": 1.0}, "lora_dropout=1.0 must be at least 0 and below 1"),
    ],
)
def test_numbers_of_adapters_out_of_range_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        peft_config_of(ModelConfig(use_peft=True, **options), tiny_model())


def test_an_unknown_backend_of_attention_is_named():
    with pytest.raises(ValueError, match="attn_implementation='flash' is unknown: it must be one of .'sdpa'"):
        load_model(RecipeArguments(), ModelConfig(model_name_or_path="x", attn_implementation="flash"), 0)


def test_an_unknown_field_of_an_architecture_is_named_with_the_one_that_was_meant():
    with pytest.raises(RecipeError, match="d_modl is no field of LLaDAConfig .did you mean d_model"):
        new_config({"d_modl": 8}, TOKENIZER)


def test_evaluation_without_held_out_rows_is_refused(tmp_path):
    for options in ({"eval_strategy": "steps", "eval_steps": 1}, {"load_best_model_at_end": True}):
        args = MaskedDiffusionConfig(str(tmp_path), use_cpu=True, save_strategy="no", **options)
        with pytest.raises(RecipeError, match=f"{next(iter(options))} needs held-out rows: set eval_fraction"):
            check_evaluated(args, None)
        check_evaluated(args, [{}])
    check_evaluated(MaskedDiffusionConfig(str(tmp_path), use_cpu=True), None)


def test_options_that_need_a_package_or_processes_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr("llada.training.config.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="deepspeed needs a package that is not installed: pip install"):
        MaskedDiffusionConfig(str(tmp_path), use_cpu=True, deepspeed="zero.json")
    with pytest.raises(ValueError, match="fsdp shards a model over several processes"):
        MaskedDiffusionConfig(str(tmp_path), use_cpu=True, fsdp=True)


def test_an_unknown_logger_is_named_by_its_option():
    message = "report_to=.'wandbb'.: wandbb is not supported, only"
    with pytest.raises(RecipeError, match=message), loggers_named(["wandbb"]):
        raise ValueError("wandbb is not supported, only tensorboard are supported.")


def test_a_function_with_other_arguments_is_refused_before_anything_is_sampled(tmp_path):
    file = written(tmp_path, "mine.py", "def of_answer(answer): return 1.0\ndef good(row, answer): return 1.0\n")
    for load in (load_verifier, lambda name: load_reward(name, "prompts.jsonl")):
        with pytest.raises(RecipeError, match="must take two arguments, .row, answer.: too many positional"):
            load(f"{file}:of_answer")
        load(f"{file}:good")
    with pytest.raises(RecipeError, match="there is no file absent.py"):
        load_function("reward", "absent.py:good")


def test_a_message_does_not_run_into_a_progress_bar(monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    monkeypatch.setattr(sys, "stderr", screen)
    bar = tqdm(total=10, delay=0)
    bar.update(3)
    failure.report(RecipeError("wrong"))
    assert screen.getvalue().endswith("\nRecipeError: wrong\n")


def test_what_takes_long_says_what_it_is_and_what_is_quick_does_not(monkeypatch, capsys):
    monkeypatch.setattr(llada.cli.arguments, "PATIENCE", 0.01)
    with saying("reading a.jsonl"):
        time.sleep(0.1)
    assert capsys.readouterr().err == "reading a.jsonl ...\n"
    monkeypatch.setattr(llada.cli.arguments, "PATIENCE", 0.1)
    with pytest.raises(KeyError), saying("reading a.jsonl"):
        raise KeyError
    time.sleep(0.15)
    assert capsys.readouterr().err == ""


def test_bars_of_short_work_do_not_appear_in_commands():
    """In a process of its own: tqdm reads the variable when it is imported."""
    script = "import llada.cli\nfrom tqdm.auto import tqdm\nlist(tqdm(range(3), desc='loading'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("TQDM_DELAY", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_trainer_finds_no_special_token_to_change_and_to_warn_of():
    model = tiny_model(**IDS)
    assert model.config.bos_token_id != TOKENIZER.bos_token_id
    name_beginning(model, TOKENIZER)
    before = model.config.to_dict()
    align_special_tokens(model, TOKENIZER)
    assert model.config.to_dict() == before
    assert model.config.bos_token_id == TOKENIZER.bos_token_id
