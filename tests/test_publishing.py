"""Model cards, and pushing to a hub that is a stub: which files go there, and what is left if it fails."""

import json
import logging
import shutil
import signal
from concurrent.futures import Future
from types import SimpleNamespace

import pytest
import test_sft
import test_vrpo_trainer
import torch
from conftest import tiny_model
from huggingface_hub import CommitInfo, HfApi, ModelCard
from peft import AutoPeftModelForCausalLM, LoraConfig
from test_sft import IDS, TOKENIZER
from transformers import AutoModelForCausalLM

from llada.cli.train import LastEvaluation, save
from llada.errors import RecipeError
from llada.sampling.settings import FILE, SamplerSettings
from llada.training.card import hub_id
from llada.training.publishing import SAMPLER
from llada.training.saving import WholeCheckpoints
from vrpo.recipes import align

MODEL = {"config.json", "model.safetensors"}
TEXT = {"chat_template.jinja", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture
def hub(monkeypatch):
    """What is pushed: the repositories that were made, and for each commit its message and files."""
    found = SimpleNamespace(made=[], commits=[], cards=[], down=False)

    def create_repo(self, repo_id, **options):
        if found.down:
            raise ConnectionError("the hub\ncannot be reached")
        found.made.append((repo_id, options["private"]))
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, repo_id, operations, *, commit_message, **options):
        if found.down:
            raise ConnectionError("the hub\ncannot be reached")
        found.commits.append((repo_id, commit_message, {each.path_in_repo for each in operations}))
        return CommitInfo(f"https://huggingface.co/{repo_id}/commit/0", commit_message, "", "0")

    monkeypatch.setattr(HfApi, "_validate_yaml", lambda self, content, **options: found.cards.append(content))
    monkeypatch.setattr("huggingface_hub.hf_api.is_xet_available", lambda: False)  # one commit for each push
    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    return found


def lie_about(folder) -> None:
    """What else lies in the directory of a run."""
    for name in ("runs/events", "reference/ref_log_probs.safetensors", "variance/variance.json", "report.html"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    for name in ("pairs.jsonl", "optimizer.pt", ".run.lock", "samples.json", "_cache"):
        (folder / name).write_text("x")


def copied(folder, names):
    """A directory beside with the files that were pushed, as the hub would give them."""
    target = folder.with_name(f"{folder.name}-downloaded")
    target.mkdir()
    for name in names:
        shutil.copy(folder / name, target / name)
    return target


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=torch.arange(8)[None]).logits


PUSHED = {"push_to_hub": True, "hub_model_id": "me/aligned", "hub_token": "hf_secretsecret"}


def pairs_trainer(folder, **changes):
    return test_vrpo_trainer.trainer(folder, torch.float32, max_steps=2, **changes)


def test_only_the_model_its_tokenizer_and_its_card_are_pushed(tmp_path, hub):
    run = pairs_trainer(tmp_path, **PUSHED, hub_private_repo=True)
    lie_about(tmp_path)
    run.train()
    SamplerSettings().save(tmp_path)
    run.save_model()
    assert hub.made == [("me/aligned", True)]
    assert hub.commits == [("me/aligned", "End of training", MODEL | TEXT | {"README.md", SAMPLER})]
    assert FILE == SAMPLER
    loaded = AutoModelForCausalLM.from_pretrained(copied(tmp_path, hub.commits[0][2]))
    assert torch.equal(logits(loaded), logits(run.model))
    run.push_to_hub("again")
    assert hub.commits[1][1:] == ("again", hub.commits[0][2])


def test_adapters_are_pushed_without_their_base_and_without_the_reference(tmp_path, hub):
    tiny_model(dtype=torch.float32, **IDS).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    run = pairs_trainer(tmp_path / "run", model=base, peft_config=LoraConfig(r=2), **PUSHED)
    run.train()
    run.save_model()
    assert hub.commits[0][2] == {"adapter_config.json", "adapter_model.safetensors", "README.md"} | TEXT
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.base_model is None  # PEFT writes the path, which the hub refuses
    assert "(LoRA, rank 2, alpha 8)" in card.text
    loaded = AutoPeftModelForCausalLM.from_pretrained(copied(tmp_path / "run", hub.commits[0][2]))
    assert torch.equal(logits(loaded), logits(run.model))


STRATEGIES = {"end": [], "checkpoint": [], "every_save": [pytest.mark.slow], "all_checkpoints": [pytest.mark.slow]}


@pytest.mark.parametrize("strategy", [pytest.param(name, marks=marks) for name, marks in STRATEGIES.items()])
def test_checkpoints_go_as_the_strategy_says_and_can_be_resumed_from(tmp_path, hub, strategy):
    saved = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    run = pairs_trainer(tmp_path, **PUSHED, **saved, hub_strategy=strategy, hub_always_push=True)
    run.train()
    run.save_model()
    *during, last = hub.commits
    assert last[1] == "End of training"
    models = [files for _, message, files in during if message.startswith("Training in progress, step")]
    checkpoints = [files for _, message, files in during if message.endswith(", checkpoint")]
    assert [files for files in models if files not in checkpoints] == ([] if strategy == "end" else [MODEL | TEXT] * 2)
    names = {"checkpoint": ["last-checkpoint"] * 2, "all_checkpoints": ["checkpoint-1", "checkpoint-2"]}
    assert sorted(min(files).split("/")[0] for files in checkpoints) == names.get(strategy, [])
    for files in checkpoints:
        held = {name.split("/")[1] for name in files}
        assert held > {"optimizer.pt", "scheduler.pt", "trainer_state.json", "model.safetensors"}
        # One is a pickle with the token; the other says that the checkpoint is unfinished, as it was when it was read.
        assert not held & {"training_args.bin", "manifest.json"}
    assert not [path for path in tmp_path.glob("*.safetensors") if path.name != "model.safetensors"]


def test_a_hub_that_fails_costs_no_model(tmp_path, hub, caplog):
    hub.down = True
    with pytest.raises(RecipeError, match=r"the repository me/aligned .* \(ConnectionError: the hub cannot be"):
        pairs_trainer(tmp_path, **PUSHED)
    hub.down = False
    run = pairs_trainer(tmp_path, **PUSHED, save_strategy="steps", save_steps=1)
    hub.down = True
    with caplog.at_level(logging.WARNING):
        run.train()
        run.save_model()
    failed = "pushed to me/aligned (ConnectionError: the hub cannot be reached)"
    assert f"a checkpoint was not {failed}" in caplog.text
    assert f"the model was not {failed}. It is saved in {tmp_path}" in caplog.text
    assert (tmp_path / "model.safetensors").exists()
    assert not hub.commits


def test_a_long_upload_holds_up_no_checkpoint_and_no_stop(tmp_path, hub, monkeypatch):
    """With hub_always_push a second push joins the first; both checkpoints are kept; a stopped run does not wait."""
    run = pairs_trainer(tmp_path, **PUSHED, hub_always_push=True)
    uploads: list[Future] = []
    monkeypatch.setattr(run, "upload_files", lambda *_, **__: uploads.append(Future()) or uploads[-1])
    kept: list[list] = []
    monkeypatch.setattr(WholeCheckpoints, "complete_later", lambda self, folder, limit, kept_: kept.append(kept_))
    first, second = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    for folder in (first, second):
        folder.mkdir()
        run._push_from_checkpoint(str(folder))
        run.complete_later(folder, 1, [folder])
    assert run.push_in_progress.jobs == uploads
    assert kept == [[first], [second, first]]
    monkeypatch.setattr(WholeCheckpoints, "_finalize_training", lambda *_: "left")
    run.stop.stopped_by = signal.SIGTERM
    assert run._finalize_training(None, 0, 0.0) == "left"
    uploads[0].set_result(None)
    run.complete_later(second, 1, [second])
    assert kept[-1] == [second]
    uploads[1].set_result(None)
    run.stop.stopped_by = 0
    run._finalize_training(None, 0, 0.0)
    assert run.push_in_progress is None


def words(**options) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def recipe(tmp_path):
    """The words of a tiny run of `vrpo align`, in a directory with its model and pairs."""
    tiny_model(dtype=torch.float32, n_layers=1, **IDS).save_pretrained(tmp_path / "base")
    TOKENIZER.save_pretrained(tmp_path / "base")
    SamplerSettings().save(tmp_path / "base")
    rows = [json.dumps(row) + "\n" for row in test_vrpo_trainer.PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    return words(
        model_name_or_path=tmp_path / "base", dataset_name=tmp_path / "pairs.jsonl", output_dir=tmp_path / "out",
        max_steps=2, n_t=2, beta=0.3, estimator="loo_complementary", per_device_train_batch_size=4, eval_fraction=0.25,
        gradient_accumulation_steps=1, learning_rate=1e-3, save_strategy="no", report_to="none", use_cpu="true",
        sample_prompts=0,
    )  # fmt: skip


def test_a_recipe_writes_a_card_and_pushes_at_its_end_and_when_it_is_resumed(tmp_path, recipe, hub, monkeypatch):
    monkeypatch.setattr("sys.orig_argv", ["/x/python", "/x/bin/vrpo", "align", "--hub_token", "hf_secretsecret"])
    push = words(push_to_hub="true", hub_model_id="me/aligned", hub_token="hf_secretsecret")
    align.main([*recipe, *push])
    card = ModelCard.load(tmp_path / "out" / "README.md")
    data = card.data.to_dict()
    assert data.pop("tags") == ["trl", "dpo", "vrpo", "llada", "masked-diffusion"]
    assert data == {"library_name": "transformers", "model_name": "aligned", "pipeline_tag": "text-generation"}
    for line in (
        "| base | `base` |", "| data | `pairs.jsonl`, 12 pairs |", "| held out | 4 pairs |", "| beta | 0.3 per nat |",
        "| sampling design | loo_complementary, n = 2 masks of each response |", "| loss | 1 sigmoid + 0.05 sft |",
        "| steps | 2 of 4 pairs |", "\nvrpo align --hub_token '(left out)'", "arXiv:2502.09992",
        "arXiv:2505.19223", 'from_pretrained("me/aligned"',
    ):  # fmt: skip
        assert line in card.text, line
    assert "hf_secret" not in card.text
    assert "| rewards/margins |" in card.text.split("## Metrics")[1]
    assert "per_second" not in card.text
    assert [commit[2] for commit in hub.commits] == [MODEL | TEXT | {"README.md", SAMPLER}]
    align.main([*recipe, *push, "--resume", "true"])
    assert len(hub.commits) == 2


def test_a_card_is_replaced_unless_it_is_its_users(tmp_path):
    run = pairs_trainer(tmp_path)
    run.train()
    run.create_model_card(model_name="first", finetuned_from="GSAI-ML/LLaDA-8B-Base", dataset_name="owner/pairs")
    found = ModelCard.load(tmp_path / "README.md")
    assert (found.data.base_model, found.data.datasets) == ("GSAI-ML/LLaDA-8B-Base", "owner/pairs")
    assert "[owner/pairs](https://huggingface.co/datasets/owner/pairs)" in found.text
    run.create_model_card(model_name="second", license="apache-2.0")
    assert "# second" in (tmp_path / "README.md").read_text()
    own = (tmp_path / "README.md").read_text().replace("<!-- Written by", "<!-- was written by")
    (tmp_path / "README.md").write_text(own)
    run.create_model_card(model_name="third")
    assert (tmp_path / "README.md").read_text() == own


def test_a_card_that_fails_leaves_a_finished_run(tmp_path, caplog):
    """The state, by which a finished run is known, is written before, and the model is pushed."""
    done = []

    def fail(**_):
        raise ValueError("no such template")

    run = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path)), eval_dataset=None, create_model_card=fail,
        save_model=lambda **_: done.append("model"), save_state=lambda: done.append("state"),
        push_saved=lambda: done.append("pushed"),
    )  # fmt: skip
    save(run, None, None, LastEvaluation())
    assert done == ["model", "state", "pushed"]
    assert "the model's card was not written (ValueError: no such template)" in caplog.text


def test_the_card_of_sft_has_no_design_and_one_paper(tmp_path):
    run = test_sft.trainer(tmp_path, torch.float32, max_steps=1)
    run.train()
    run.save_model()
    assert not (tmp_path / "README.md").exists()  # in Python it is written by `create_model_card` and on a push
    run.create_model_card()
    text = (tmp_path / "README.md").read_text()
    assert "| base |" not in text  # a model from memory may come from anywhere
    run.create_model_card(finetuned_from="")
    assert "| base | none: trained from scratch |" in (tmp_path / "README.md").read_text()
    assert "sampling design" not in text
    assert "2505.19223" not in text


@pytest.mark.parametrize("name", ["runs/x/y", "./a", "/a/b", "model", "", None, "~/a", "a b/c"])
def test_paths_are_no_names_of_the_hub(name):
    assert hub_id(name) is None
