"""Names of the hub: config, tokenizer and weights are of one commit, also when another one is pushed meanwhile."""

import json
import shutil

import huggingface_hub.constants
import pytest
import torch
from conftest import tiny_model
from peft import LoraConfig
from test_sft import IDS, TOKENIZER
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from llada.cli.adapters import base_revision
from llada.cli.checkpoint import load_config, load_merged, load_model, saved_tokenizer
from llada.cli.fingerprint import fingerprint
from llada.cli.loading import load_model as load_for_training
from llada.cli.recipe import RecipeArguments
from llada.models.common.lora import wrap_with_adapters

NAME, OLD, NEW = "someone/model", "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache of the hub with two commits of a model, of other weights, context and template; "main" is the new."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--model"
    for seed, (commit, context) in enumerate(((OLD, 64), (NEW, 96))):
        snapshot = repository / "snapshots" / commit
        model = tiny_model(seed=seed, dtype=torch.float32, n_layers=1, max_sequence_length=context, **IDS)
        model.save_pretrained(snapshot)
        TOKENIZER.save_pretrained(snapshot)
        template = snapshot / "chat_template.jinja"
        template.write_text(template.read_text() + "{# " + commit + " #}")
    (repository / "refs").mkdir()
    push(repository, NEW)
    (repository / "refs" / "old").write_text(OLD)
    return repository


def push(repository, commit: str) -> None:
    (repository / "refs" / "main").write_text(commit)


def parts(tokenizer, config, model) -> tuple[str, int, bool]:
    """The commit in the template, the context, and whether the weights are those of the old commit."""
    old = (
        tiny_model(seed=0, dtype=torch.float32, n_layers=1, max_sequence_length=64, **IDS).get_input_embeddings().weight
    )
    same = torch.equal(model.get_input_embeddings().weight, old)
    return tokenizer.chat_template[-43:-3], config.max_sequence_length, same


def test_a_push_between_two_files_does_not_mix_commits(hub):
    push(hub, OLD)
    tokenizer, config = load_config(NAME)
    push(hub, NEW)
    assert parts(tokenizer, config, load_model(NAME, config)) == (OLD, 64, True)
    assert parts(saved_tokenizer(NAME, config), config, load_merged(NAME, config)[0]) == (OLD, 64, True)
    tokenizer, config = load_config(NAME)
    assert parts(tokenizer, config, load_model(NAME, config)) == (NEW, 96, False)


@pytest.mark.parametrize(
    ("revision", "expected"), [("old", (OLD, 64, True)), (OLD, (OLD, 64, True)), ("main", (NEW, 96, False))]
)
def test_model_revision_holds_for_config_weights_and_tokenizer(hub, revision, expected):
    model, tokenizer = load_for_training(RecipeArguments(), ModelConfig(NAME, model_revision=revision), seed=0)
    assert parts(tokenizer, model.config, model) == expected


def test_another_tokenizer_has_revisions_of_its_own(hub, tmp_path):
    """The model's revision does not name one of the tokenizer's."""
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    recipe = RecipeArguments(tokenizer=str(tmp_path / "tokenizer"))
    model, tokenizer = load_for_training(recipe, ModelConfig(NAME, model_revision="old"), seed=0)
    assert (model.config.max_sequence_length, tokenizer.chat_template) == (64, TOKENIZER.chat_template)


@pytest.mark.filterwarnings("ignore:Could not find a config file")  # PEFT asks the hub for it
def test_adapters_find_the_commit_of_their_base_again(hub, tmp_path):
    """Whatever "main" is when they are sampled from or trained further."""
    base, _ = load_for_training(RecipeArguments(), ModelConfig(NAME, model_revision="old"), seed=0)
    wrap_with_adapters(base, LoraConfig(r=2)).save_pretrained(tmp_path / "adapters")
    name = str(tmp_path / "adapters")
    assert base_revision(name) == OLD
    tokenizer, config = load_config(name)
    assert parts(tokenizer, config, load_merged(name, config)[0]) == (OLD, 64, True)
    model, tokenizer = load_for_training(RecipeArguments(), ModelConfig(name), seed=0)
    assert parts(tokenizer, model.config, model) == (OLD, 64, True)


def test_the_fingerprint_of_a_hub_model_is_its_commit(hub):
    tokenizer, config = load_config(NAME)
    assert fingerprint(NAME, config, tokenizer)["weights"] == NEW


@pytest.mark.parametrize("change", ["weights", "settings", "base"])
def test_adapters_and_their_base_are_both_in_the_fingerprint(tmp_path, change):
    """Of adapters moved together with their base, the fingerprint is the same."""
    base, adapters = tmp_path / "base", tmp_path / "adapters"
    model = tiny_model(dtype=torch.float32, n_layers=1, **IDS)
    model.save_pretrained(base)
    TOKENIZER.save_pretrained(base)
    torch.manual_seed(0)
    wrapped = wrap_with_adapters(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, init_lora_weights=False))
    wrapped.save_pretrained(adapters)

    def found() -> dict:
        tokenizer, config = load_config(str(adapters))
        return fingerprint(str(adapters), config, tokenizer)

    before = found()
    shutil.copytree(base, tmp_path / "moved")
    file = adapters / "adapter_config.json"
    fields = json.loads(file.read_text())
    file.write_text(json.dumps(fields | {"base_model_name_or_path": str(tmp_path / "moved")}))
    assert found() == before
    if change == "weights":
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        wrap_with_adapters(model, LoraConfig(r=2, init_lora_weights=False)).save_pretrained(adapters)
    elif change == "settings":
        file.write_text(json.dumps(fields | {"lora_alpha": 99}))
    else:
        tiny_model(seed=1, dtype=torch.float32, n_layers=1, **IDS).save_pretrained(tmp_path / "moved")
    different = {name for name, value in found().items() if value != before[name]}
    assert different == {"weights" if change == "base" else "adapters"}
