"""The reference as a second model: under ZeRO-3 it is read again and compared, and what computes otherwise is said."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model, tiny_moe
from peft import LoHaConfig, LoraConfig, get_peft_model
from test_sft import IDS
from test_sft import trainer as sft_trainer
from test_vrpo_trainer import trainer
from transformers import AutoModelForCausalLM

from vrpo.training.reference import make_reference, own_elements


def model(**changes):
    return tiny_model(seed=1, dtype=torch.float32, n_layers=1, **(IDS | changes))


@pytest.fixture
def zero3(monkeypatch):
    """As if DeepSpeed sharded the weights, of which each process here has all."""
    for name in ("reference", "own_reference"):
        monkeypatch.setattr(f"vrpo.training.{name}.is_deepspeed_zero3_enabled", lambda: True)


def test_under_zero3_the_reference_is_the_saved_copy_if_that_is_the_policy(tmp_path, zero3):
    model().save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    reference = make_reference(policy, None)
    assert reference is not policy
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), reference.parameters(), strict=True))
    assert not any(weight.requires_grad for weight in reference.parameters())


def test_under_zero3_a_policy_that_was_changed_in_memory_is_not_compared_with_the_disk(tmp_path, zero3):
    model().save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    policy.model.transformer.ln_f.weight.data[3] += 1e-6
    message = r"the model is not what .* holds \(model.transformer.ln_f.weight differs\): save the model and load it"
    with pytest.raises(ValueError, match=message):
        make_reference(policy, None)
    make_reference(policy, model())  # given, it may be another


def test_under_zero3_the_revision_is_the_one_that_was_loaded(tmp_path, zero3, monkeypatch):
    model().save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    policy.config._commit_hash = "c0ffee"
    asked = {}
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda name, **options: asked.update(options) or load(name)
    )
    make_reference(policy, None, init_kwargs={"revision": "main"})
    assert asked["revision"] == "c0ffee"


def test_under_zero3_what_cannot_be_checked_is_refused(tmp_path, zero3):
    with pytest.raises(ValueError, match="a model without a saved copy cannot be its own reference: pass ref_model"):
        make_reference(model(), None)
    with pytest.raises(ValueError, match="under ZeRO-3 it cannot be checked that a model without its LoHaConfig"):
        trainer(tmp_path, model=model(), peft_config=LoHaConfig(r=2))
    trainer(tmp_path, model=model(), peft_config=LoraConfig(r=2))


def test_of_a_sharded_weight_a_process_compares_its_own_elements(monkeypatch):
    """Seven elements on two processes are pieces of four, of which the last holds one that is nobody's."""
    piece = torch.tensor([4.0, 5.0, 6.0, torch.nan])
    weight = SimpleNamespace(ds_tensor=piece, ds_numel=7, ds_process_group=None)
    for rank, count in ((0, 4), (1, 3), (2, 0)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda group, rank=rank: rank)
        assert len(own_elements(weight)) == count


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": torch.bfloat16}, "dtype torch.bfloat16 and the policy torch.float32: its scores differ"),
        ({"attn_implementation": "eager"}, "attn_implementation eager and the policy sdpa: its scores differ"),
    ],
)
def test_a_reference_that_computes_otherwise_is_said(tmp_path, caplog, options, message):
    model().save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path)
    make_reference(policy, AutoModelForCausalLM.from_pretrained(tmp_path))
    assert not caplog.records
    make_reference(policy, AutoModelForCausalLM.from_pretrained(tmp_path, **options))
    assert message in caplog.text


def test_a_reference_by_name_computes_as_the_policy_does(tmp_path, caplog):
    model().save_pretrained(tmp_path)
    policy = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    reference = make_reference(policy, str(tmp_path))
    assert (reference.dtype, reference.config._attn_implementation) == (torch.bfloat16, "eager")
    assert not caplog.records


def test_where_an_adapter_of_another_name_is_saved_is_said(tmp_path, caplog):
    wrapped = get_peft_model(model(), LoraConfig(r=2, target_modules=["q_proj"]), adapter_name="mine")
    run = trainer(tmp_path, model=wrapped)
    assert "the adapter is named 'mine': PEFT saves it in the subdirectory mine of output_dir" in caplog.text
    run.save_model()
    assert (tmp_path / "mine" / "adapter_config.json").exists()


def test_options_that_served_for_a_dense_model_serve_for_experts(tmp_path):
    """A backward pass of experts may reach no token of some: DDP must look for unused parameters."""
    dense = sft_trainer(tmp_path)
    assert dense.accelerator.ddp_handler.find_unused_parameters is False
    assert dense.args.ddp_find_unused_parameters is None
    experts = type(dense)(
        tiny_moe(**IDS), dense.args, train_dataset=dense.train_dataset, processing_class=dense.processing_class
    )
    assert experts.accelerator.ddp_handler.find_unused_parameters is True
