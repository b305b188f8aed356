"""Adapter directories in place of models: the base is found, nothing is lost, and what cannot work says what to do."""

import json

import pytest
import torch
from conftest import tiny_model
from peft import AutoPeftModelForCausalLM, LoraConfig
from rich.console import Console
from test_chat import chat
from test_sft import IDS, TOKENIZER
from transformers import AutoModelForCausalLM, AutoTokenizer

from llada.cli.adapters import base_of, carry_settings, is_path, settings_folder
from llada.cli.arguments import CompletionArguments, SamplerOptions, fit_context, override, sampler_settings
from llada.cli.chat import NO_ANSWER, talk
from llada.cli.checkpoint import load_config, load_merged, load_model
from llada.cli.merge import merge
from llada.cli.next_steps import BUDGETS, next_steps
from llada.data.tokenizer import byte_tokenizer
from llada.data.turns import has_turns, record_turns, speaks_in_turns
from llada.errors import RecipeError
from llada.models.common.lora import wrap_with_adapters
from llada.sampling.settings import SamplerSettings
from vrpo.analysis.settings import Settings
from vrpo.recipes import align

TOKENS = torch.arange(20)[None]


def trained(folder, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Save a base and adapters that change it, under base/ and adapters/; returns the adapted logits of `TOKENS`."""
    tiny_model(dtype=dtype, n_layers=1, **IDS).save_pretrained(folder / "base")
    TOKENIZER.save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    torch.manual_seed(1)
    wrapped = wrap_with_adapters(base, LoraConfig(r=2, init_lora_weights=False)).eval()
    wrapped.save_pretrained(folder / "adapters")
    with torch.no_grad():
        return wrapped(input_ids=TOKENS).logits


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=TOKENS).logits


def test_the_base_is_found_and_adapters_are_merged_exactly_in_float32(tmp_path):
    """The tokenizer, which these adapters lack, is the base's."""
    adapted, name = trained(tmp_path), str(tmp_path / "adapters")
    tokenizer, config = load_config(name)
    assert len(tokenizer) == len(TOKENIZER)
    model = load_model(name, config)
    assert not any("lora" in each for each, _ in model.named_parameters())
    assert (logits(model) - adapted).abs().max() < 1e-4


@torch.no_grad()
def test_in_half_precision_adapters_stay_beside_the_weights_and_merging_says_what_it_lost(tmp_path):
    adapted, name = trained(tmp_path, torch.bfloat16), str(tmp_path / "adapters")
    assert torch.equal(logits(load_model(name, load_config(name)[1])), adapted)
    merged, lost = load_merged(name, load_config(name)[1])
    assert merged.dtype == torch.bfloat16
    whole, none = load_merged(name, load_config(name)[1], "float32")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    pairs = [
        (merged.get_parameter(key).float(), parameter, base.get_parameter(key))
        for key, parameter in whole.named_parameters()
    ]
    error = sum((half - full).square().sum() for half, full, _ in pairs)
    update = sum((full - before).square().sum() for _, full, before in pairs)
    assert lost == pytest.approx(float(error / update) ** 0.5, rel=1e-3)
    assert none == 0


def test_peft_s_own_auto_class_loads_them(tmp_path):
    adapted = trained(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters").eval()
    assert torch.equal(logits(model), adapted)
    with pytest.raises(TypeError, match="takes no labels; targets are `target_ids`"):
        model(input_ids=TOKENS, labels=TOKENS)


def test_a_moved_base_is_named_with_both_paths_and_the_field_to_edit(tmp_path):
    trained(tmp_path)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(RecipeError, match=r"adapters holds adapters of the base model .*/base, .*adapter_config\.json"):
        load_config(str(tmp_path / "adapters"))
    file = tmp_path / "adapters" / "adapter_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"base_model_name_or_path": str(tmp_path / "moved")}))
    assert base_of(str(tmp_path / "adapters")) == str(tmp_path / "moved")
    load_config(str(tmp_path / "adapters"))
    file.write_text(json.dumps(fields | {"base_model_name_or_path": "runs/gone"}))
    with pytest.raises(RecipeError, match="base model runs/gone, which holds no model here"):
        load_config(str(tmp_path / "adapters"))


def test_a_merged_model_has_all_that_a_model_needs(tmp_path):
    adapted, name, out = trained(tmp_path), str(tmp_path / "adapters"), str(tmp_path / "merged")
    SamplerSettings(steps=4, gen_length=4, block_length=4).save(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    record_turns(tokenizer, {"prompt": "plain"})
    tokenizer.save_pretrained(name)
    merge(name, out)
    assert (logits(AutoModelForCausalLM.from_pretrained(out)) - adapted).abs().max() < 1e-4
    assert SamplerSettings.load(out).gen_length == 4
    assert not speaks_in_turns(load_config(out)[0])


def test_a_merge_overwrites_nothing_unasked_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    trained(tmp_path)
    name, out = str(tmp_path / "adapters"), tmp_path / "merged"
    merge(name, str(out))
    (out / "mine.txt").write_text("kept")
    with pytest.raises(RecipeError, match="merged is not empty: set --overwrite"):
        merge(name, str(out))
    with monkeypatch.context() as patch:
        patch.setattr("llada.cli.merge.saved_tokenizer", lambda *given: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            merge(name, str(out), overwrite=True)
    assert (out / "mine.txt").exists()
    merge(name, str(out), overwrite=True)
    assert not (out / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapters", "base", "merged"]
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.tex").write_text("")
    for target, message in (
        ("papers", "holds files but no model"),
        ("base", "is merged from"),
        (".", "is merged from"),
    ):
        with pytest.raises(RecipeError, match=message):
            merge(name, str(tmp_path / target), overwrite=True)
    with pytest.raises(RecipeError, match="holds no adapters"):
        merge(str(tmp_path / "base"), str(tmp_path / "new"))


def test_recipes_continue_adapters_and_their_reference_is_a_frozen_copy(tmp_path, caplog):
    """VRPO by a recipe on an adapter directory: the score starts at 0, and what is written loads on the same base."""
    trained(tmp_path)
    rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"model_name_or_path": tmp_path / "adapters", "dataset_name": tmp_path / "rows.jsonl"}
    options |= {"output_dir": tmp_path / "run", "use_cpu": "true", "report_to": "none", "use_peft": "true"}
    options |= {"max_steps": 2, "learning_rate": 0.01, "warmup_steps": 0, "logging_steps": 1, "n_t": 1}
    options |= {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    align.main([word for key, value in options.items() for word in (f"--{key}", str(value))])
    assert "training continues the adapters of" in caplog.text
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["rewards/margins"] == 0
    assert base_of(str(tmp_path / "run")) == base_of(str(tmp_path / "adapters"))
    logits = []
    for name in ("adapters", "run"):
        tokenizer, config = load_config(str(tmp_path / name))
        logits.append(load_model(str(tmp_path / name), config)(tokenizer("q", return_tensors="pt").input_ids).logits)
    assert not torch.equal(*logits)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "a", "completion": "b"}, False),
        ({"text": "a"}, False),
        ({"messages": [{"role": "user", "content": "a"}]}, True),
        ({"prompt": [{"role": "user", "content": "a"}], "chosen": [], "rejected": []}, True),
        ({"prompt": "<|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>", "chosen": "b", "rejected": "c"}, True),
    ],
)
def test_whether_the_chat_template_applies_travels_with_the_tokenizer(tmp_path, row, turns):
    """Text that was rendered beforehand is a dialogue too; without a record the template decides."""
    byte_tokenizer().save_pretrained(tmp_path)  # TOKENIZER may have the record of another test's training
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    record_turns(tokenizer, {"input_ids": [1, 2]})  # of tokens nothing is known
    assert speaks_in_turns(tokenizer)
    assert has_turns(row) == turns
    record_turns(tokenizer, row)
    tokenizer.save_pretrained(tmp_path / "saved")
    assert speaks_in_turns(AutoTokenizer.from_pretrained(tmp_path / "saved")) == turns


def test_sampler_settings_are_the_model_s_or_else_its_base_s(tmp_path):
    trained(tmp_path)
    name = str(tmp_path / "adapters")
    assert settings_folder(name) is None
    SamplerSettings(steps=4, gen_length=4, block_length=4).save(tmp_path / "base")
    assert settings_folder(name) == tmp_path / "base"
    carry_settings(name, name)
    assert settings_folder(name) == tmp_path / "adapters"
    assert SamplerSettings.load(name).steps == 4


def lengths(settings: SamplerSettings) -> tuple[int, int, int]:
    return settings.gen_length, settings.block_length, settings.steps


def test_block_and_steps_follow_a_length_that_is_given_alone(tmp_path, capsys):
    """Steps keep the tokens that each commits; a length that the block does not divide stays an error."""
    saved = SamplerSettings(steps=64, gen_length=256, block_length=32)
    assert lengths(override(SamplerSettings(), SamplerOptions(gen_length=32))) == (32, 32, 32)
    assert lengths(override(saved, SamplerOptions(gen_length=64))) == (64, 32, 16)
    assert lengths(override(saved, SamplerOptions(gen_length=96))) == (96, 32, 24)
    assert lengths(override(saved, SamplerOptions(gen_length=8))) == (8, 8, 2)
    assert lengths(override(saved, SamplerOptions(gen_length=64, steps=8))) == (64, 32, 8)
    args = CompletionArguments(model=str(tmp_path))
    sampler_settings(args, SamplerOptions(gen_length=32))
    assert (
        capsys.readouterr().err == "block_length=32 and steps=32 follow from gen_length=32; options set other values\n"
    )
    saved.save(tmp_path)
    with pytest.raises(ValueError, match="gen_length=100 must be a multiple of block_length=32, such as 96 or 128"):
        sampler_settings(args, SamplerOptions(gen_length=100))


def test_a_length_that_nobody_chose_fits_a_small_context(tmp_path, capsys):
    args, default = CompletionArguments(model=str(tmp_path)), SamplerSettings()
    assert fit_context(default, args, SamplerOptions(), 512) == default
    assert lengths(fit_context(default, args, SamplerOptions(), 64)) == (32, 32, 32)
    assert "gen_length=32, half of the model's context of 64" in capsys.readouterr().err
    with pytest.raises(ValueError, match="gen_length=128 leaves no room for a prompt in the model's context of 64"):
        fit_context(default, args, SamplerOptions(gen_length=128), 64)
    default.save(tmp_path)
    with pytest.raises(ValueError, match="use at most 32"):
        fit_context(default, args, SamplerOptions(), 64)


def test_a_plain_chat_continues_each_line_alone_and_says_when_there_is_no_answer(capsys):
    talker = chat()
    talker.plain = True
    seen = []
    talker.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or (kwargs["input_ids"],))[0][0].tolist()), with_kwargs=True
    )
    for text in ("ab", "cd"):
        talker.say(text)
        assert seen[-1][:-8] == TOKENIZER(text, add_special_tokens=False).input_ids
    assert talker.messages == []
    for parameter in talker.model.parameters():
        torch.nn.init.zeros_(parameter)
    body = talker.model.model.transformer
    for constant in (body.wte.weight, body.ln_f.weight, body.ff_out.weight[IDS["eos_token_id"]]):
        torch.nn.init.ones_(constant)
    talk(talker, Console(width=200), ["ab", "quit", "cd"], live=False)
    assert capsys.readouterr().out.splitlines() == [NO_ANSWER]
    assert "a shorter --gen_length" in NO_ANSWER


def test_the_next_steps_are_those_that_the_data_allow(tmp_path):
    trained(tmp_path)
    out = str(tmp_path / "adapters")
    asked = next_steps("runs/a b", None, "x.jsonl", ["prompt", "answer", "completion"], 5)
    assert "vrpo align --model_name_or_path 'runs/a b' --dataset_name PAIRS.jsonl --output_dir 'runs/a b_al" in asked
    assert "llada generate --model 'runs/a b' --prompts PROMPTS.jsonl" in asked
    left_out = next_steps("runs/a b", None, "x.jsonl", ["prompt", "answer", "completion"], 5, dropped=True)
    assert "vrpo make-pairs --model 'runs/a b' --prompts PROMPTS.jsonl" in left_out  # a row left out may have no prompt
    pretrained = next_steps("runs/a", None, "x.txt", ["text"], 5)
    assert "llada sft --model_name_or_path runs/a --dataset_name YOUR.jsonl --output_dir runs/a_sft" in pretrained
    assert "llada chat --model 'runs/a b'" in asked
    assert "accelerate launch -m vrpo make-pairs --model 'runs/a b' --prompts x.jsonl --output" in asked
    for columns in (["text"], ["prompt", "answer", "completion"]):
        autoregressive = next_steps("runs/a", None, "x", columns, 5, causal=True)
        assert "llada info runs/a" in autoregressive
        assert ("llada sft" in autoregressive) == (columns == ["text"])
        assert not any(word in autoregressive for word in ("chat", "generate", "make-pairs", "align"))
    assert "make-pairs" not in next_steps(out, None, "x.jsonl", ["prompt", "completion"], 5)
    aligned = next_steps(out, "base", "x.jsonl", ["prompt", "chosen", "rejected"], 40)
    assert "--pairs 32 --batch_size 16" in aligned
    assert f"llada info {out}\n" in aligned
    assert "llada generate" in aligned
    assert "--budgets" not in aligned
    assert list(BUDGETS) == Settings().budgets
    three = next_steps(out, "base", "x.jsonl", ["chosen", "rejected"], 40, budget=3)
    assert "--budgets 1 2 4 8 16 3 --output" in three
    assert f"llada merge {out} {out}_merged" in aligned
    assert "--pairs 12 --batch_size 12" in next_steps(out, "base", "x.jsonl", ["chosen", "rejected"], 12)
    assert "variance" not in next_steps(out, "base", "x.jsonl", ["chosen", "rejected"], None)


def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_name(tmp_path, monkeypatch):
    """The hub would be asked for it with retries, and its message would speak of repositories."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for name in ("runs/tiny_pretrain", "/absent", "./absent", "~/absent", "a/b/c", "here/absent", "absent"):
        assert is_path(name)
        with pytest.raises(RecipeError, match=f"^{name} does not exist"):
            load_config(name)
        with pytest.raises(RecipeError, match=f"^{name} does not exist"):
            sampler_settings(CompletionArguments(model=name), SamplerOptions())
    assert not is_path("GSAI-ML/LLaDA-8B-Base")
    assert base_of("GSAI-ML/LLaDA-8B-Base") == "GSAI-ML/LLaDA-8B-Base"


def test_a_model_of_another_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(RecipeError, match="is a gpt2 model, not one of the families"):
        load_config(str(tmp_path))
