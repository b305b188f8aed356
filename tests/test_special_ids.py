"""Ids that only the tokenizer has: training and every command find them alike, and what is saved has them itself."""

import json

import pytest
import torch
from conftest import tiny_model, tiny_moe
from peft import LoraConfig
from test_sft import IDS, TOKENIZER
from test_sft import PAIRS as ROWS
from test_vrpo_trainer import PAIRS
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import llada
from llada import MaskedDiffusionConfig, MaskedDiffusionTrainer
from llada.cli.checkpoint import load_config, load_model
from llada.cli.info import rows
from llada.cli.merge import merge
from llada.recipes import generate
from vrpo import VRPOConfig, VRPOTrainer, variance

NONE = IDS | {f"{name}_token_id": None for name in ("mask", "eos", "pad", "eot")}
FOUND = {"mask": 258, "eos": 257, "pad": 257, "eot": 261}
FAMILIES = {"dense": tiny_model, "moe": tiny_moe}


def save(folder, build=tiny_model, seed: int = 1, tokenizer=TOKENIZER, **ids) -> str:
    build(seed=seed, dtype=torch.float32, **(NONE | ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def train(kind: str, folder, model, **options):
    settings = dict(output_dir=str(folder), max_steps=1, per_device_train_batch_size=2, report_to="none", use_cpu=True)
    settings |= dict(save_strategy="no", disable_tqdm=True, log_level="error", logging_steps=1)
    if kind == "sft":
        run = MaskedDiffusionTrainer(model, MaskedDiffusionConfig(**settings), train_dataset=ROWS[:2], **options)
    else:
        run = VRPOTrainer(model, args=VRPOConfig(**settings, n_t=1), train_dataset=PAIRS[:2], **options)
    run.train()
    run.save_model()
    return run


def saved_ids(folder) -> dict[str, int | None]:
    fields = json.loads((folder / "config.json").read_text())
    return {name: fields.get(f"{name}_token_id") for name in FOUND}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["sft", "vrpo"])
def test_a_trained_model_is_saved_with_the_ids_of_its_tokenizer(kind, family, tmp_path):
    """Also where the reference is loaded from the same files, whose config lacks them."""
    source = save(tmp_path / "source", FAMILIES[family])
    train(kind, tmp_path / "out", source, **({"ref_model": source} if kind == "vrpo" else {}))
    assert saved_ids(tmp_path / "out") == FOUND
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()  # without a tokenizer
    written = llada.generate(model, torch.tensor([[70, 71]]), steps=2, gen_length=4, block_length=4)
    assert FOUND["mask"] not in written[0].tolist()


def test_adapters_are_merged_with_the_ids(tmp_path):
    source = save(tmp_path / "source")
    train("vrpo", tmp_path / "adapter", source, peft_config=LoraConfig(r=2))
    merge(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert saved_ids(tmp_path / "merged") == FOUND


def test_commands_find_the_ids_as_training_does(tmp_path, capsys):
    policy, reference = save(tmp_path / "policy"), save(tmp_path / "reference", seed=2)
    tokenizer, config = load_config(policy)  # of chat, generate and make_pairs
    assert load_model(policy, config).denoiser_spec.mask_id == FOUND["mask"] == tokenizer.mask_token_id
    assert dict(rows(policy, 4))["ids"].startswith("mask 258, eos 257, pad 257, eot 261; tokenizer of 262 agrees")
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "completions.jsonl"
    prompts.write_text('{"prompt": "a"}\n')
    options = ["--prompts", str(prompts), "--output", str(out), "--steps", "2", "--gen_length", "4"]
    generate.main(["--model", policy, *options, "--block_length", "4"])
    assert len(out.read_text().splitlines()) == 1
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[:4]))
    names = ["--model", policy, "--ref_model", reference, "--data", str(data), "--output", str(tmp_path / "table")]
    variance.main([*names, "--repeats", "2", "--budgets", "2", "--gradient", "none"])
    assert (tmp_path / "table" / "variance.json").exists()
    capsys.readouterr()


CONFLICTS = {"mask": 7, "eos": 8, "pad": 9}


@pytest.mark.parametrize("name", CONFLICTS)
def test_a_conflict_between_config_and_tokenizer_is_an_error_everywhere(name, tmp_path):
    message = f"{name}_token_id is {CONFLICTS[name]} in the model's config but {FOUND[name]} in the tokenizer"
    other = save(tmp_path / "other", **{f"{name}_token_id": CONFLICTS[name]})
    good, data = save(tmp_path / "good"), tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS[:4]))
    table = ["--data", str(data), "--output", str(tmp_path / "table")]
    calls = [
        lambda: train("sft", tmp_path / "out", other),
        lambda: train("vrpo", tmp_path / "out", other),
        lambda: load_config(other),
        lambda: rows(other, 4),
        lambda: variance.main(["--model", other, "--ref_model", good, *table]),
        lambda: variance.main(["--model", good, "--ref_model", other, *table]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_neither_has_a_mask_token(tmp_path):
    source = save(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(source)
    assert AutoConfig.from_pretrained(source).mask_token_id is None
    for call in (lambda: train("vrpo", tmp_path / "out", source), lambda: load_config(source)):
        with pytest.raises(ValueError, match=r"has no mask token and the model's config no mask_token_id"):
            call()
