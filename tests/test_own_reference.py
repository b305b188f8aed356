"""A policy with adapters as its own reference: it is the initial policy before and after steps, or refused by name."""

import copy

import peft
import pytest
import torch
from conftest import tiny_model, tiny_moe
from peft.tuners.lora.config import KasaConfig, MontecloraConfig
from test_sft import IDS
from test_sft import trainer as sft_trainer
from test_vrpo_trainer import first_batch, trainer

from llada.models.common.lora import wrap_with_adapters
from vrpo import VRPOTrainer


def model(seed: int = 1, **changes):
    return tiny_model(seed=seed, dtype=torch.float32, n_layers=1, **IDS, **changes)


@torch.no_grad()
def scores(run: VRPOTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    """ELBOs of policy and reference, as in a step."""
    run.model.train()
    found = run.scores(run.denoiser(run.model), first_batch(run), epoch=0)
    return found.policy.joined(), found.reference.joined()


def lora(**changes):
    return peft.LoraConfig(**({"r": 2} | changes))


DROPS = {"module_dropout": 0.5, "rank_dropout": 0.5}
INSIDE = {"target_modules": ["q_proj", "up_proj"]}
RIGHT = {
    "lora": lora(lora_dropout=0.3),
    "gaussian": lora(init_lora_weights="gaussian"),
    "rank-stabilized": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "bias of its own": lora(lora_bias=True, target_modules=["q_proj"]),
    "patterns": lora(rank_pattern={"q_proj": 3}, alpha_pattern={"q_proj": 5}, exclude_modules=["v_proj"]),
    "quantization-aware": lora(use_qalora=True, qalora_group_size=8),
    "parameters": lora(target_parameters=["q_proj.weight"], target_modules=["k_proj"]),
    "every linear layer": lora(target_modules="all-linear"),
    "embedding": lora(target_modules=["wte"]),
    "saved norms": lora(modules_to_save=["attn_norm"]),
    "saved embedding": lora(modules_to_save=["wte"]),
    "saved head": lora(modules_to_save=["transformer.ff_out"]),
    "tokens": lora(trainable_token_indices={"wte": [3, 65]}),
    "tokens alone": peft.TrainableTokensConfig(target_modules=["wte"], token_indices=[3, 65]),
    "loha": peft.LoHaConfig(r=2, **DROPS),
    "lokr": peft.LoKrConfig(r=2, rank_dropout_scale=True, **DROPS),
    "lokr as in lycoris": peft.LoKrConfig(r=2, init_weights="lycoris"),
    "oft": peft.OFTConfig(oft_block_size=8, module_dropout=0.5),
    "ia3": peft.IA3Config(**INSIDE, feedforward_modules=["up_proj"]),
    "vera": peft.VeraConfig(r=2, vera_dropout=0.3),
    "adalora": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, lora_dropout=0.1),
    "fourier": peft.FourierFTConfig(n_frequency=10, init_weights=True),
    "circular": peft.C3AConfig(block_size=8, init_weights=True),
    "householder": peft.HRAConfig(r=2),
    "miss": peft.MissConfig(r=2, miss_dropout=0.3),
    "road": peft.RoadConfig(group_size=8),
    "random bases": peft.RandLoraConfig(r=2, randlora_dropout=0.3),
    "osf": peft.OSFConfig(),
}


@pytest.fixture(scope="module")
def initial(tmp_path_factory) -> torch.Tensor:
    """The scores of the model that `RIGHT` puts adapters on."""
    return scores(trainer(tmp_path_factory.mktemp("plain"), model=model(include_qkv_bias=True), n_t=1))[1]


@pytest.mark.parametrize("name", RIGHT)
def test_the_reference_is_the_initial_policy_before_and_after_steps(tmp_path, initial, name):
    """To the last bit; a policy whose start is rounded (a product that is the identity) to 1e-4 nats of a response."""
    policy = model(include_qkv_bias=True)
    run = trainer(
        tmp_path, model=policy, peft_config=RIGHT[name], n_t=1, max_steps=3, learning_rate=0.03, warmup_steps=0
    )
    policy, reference = scores(run)
    assert torch.equal(reference, initial)
    assert (policy - initial).abs().max() < 1e-4
    run.train()
    policy, reference = scores(run)
    assert torch.equal(reference, initial)
    assert (policy - initial).abs().max() > 0.01
    assert torch.equal(policy, scores(run)[0])


WRONG = {
    "all biases": (lora(bias="all"), r"bias='all' trains 3 weights that are no adapter's, such as .*q_proj.*bias"),
    "biases of lora": (lora(bias="lora_only"), "bias='lora_only' trains 3 weights that are no adapter's"),
    "biases of oft": (peft.OFTConfig(oft_block_size=8, bias="all"), "bias='all' trains 3 weights"),
    "random": (lora(init_lora_weights=False), "init_lora_weights=False changes the model before training"),
    "pissa": (lora(init_lora_weights="pissa"), "init_lora_weights='pissa' changes the model before training"),
    "olora": (lora(init_lora_weights="olora"), "init_lora_weights='olora' changes the model before training"),
    "loftq": (lora(init_lora_weights="loftq", loftq_config={"loftq_bits": 4}), "init_lora_weights='loftq' changes"),
    "eva": (lora(init_lora_weights="eva", eva_config=peft.EvaConfig()), "init_lora_weights='eva' changes the model"),
    "mica": (lora(init_lora_weights="mica"), "init_lora_weights='mica' changes the model"),
    "orthogonal": (lora(init_lora_weights="orthogonal"), "init_lora_weights='orthogonal' changes the model"),
    "kasa": (lora(kasa_config=KasaConfig()), "kasa_config takes components out of the base model's weights"),
    "monteclora": (lora(monteclora_config=MontecloraConfig()), r"these adapters \(LoraConfig\) draw random numbers"),
    "random loha": (peft.LoHaConfig(r=2, init_weights=False), r"\(LoHaConfig\) change the model before training"),
    "random lokr": (peft.LoKrConfig(r=2, init_weights=False), r"\(LoKrConfig\) change the model before training"),
    "random fourier": (peft.FourierFTConfig(n_frequency=10), r"\(FourierFTConfig\) change the model before training"),
    "random vectors": (peft.VBLoRAConfig(r=2, vector_length=8, num_vectors=8), r"differ by 0.0\d+ nats a token"),
    "noise": (
        peft.PveraConfig(r=4),
        r"these adapters \(PveraConfig\) draw random numbers in each pass, as dropout does",
    ),
    "of tasks": (
        peft.PolyConfig(r=2),
        "PolyConfig does not run on this model: ValueError: task_ids",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_adapters_without_which_the_model_is_another_are_refused_by_name(tmp_path, name):
    config, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, model=model(include_qkv_bias=True), peft_config=config)


def test_biases_are_trained_against_a_reference_of_its_own(tmp_path):
    """What is refused without ref_model is right with it."""
    run = trainer(
        tmp_path, model=model(include_qkv_bias=True), ref_model=model(include_qkv_bias=True), max_steps=3,
        peft_config=lora(bias="all"), learning_rate=0.03,
    )  # fmt: skip
    initial = scores(run)[1]
    run.train()
    assert torch.equal(scores(run)[1], initial)


def test_in_half_precision_the_rounded_norms_of_dora_are_no_other_model(tmp_path):
    """PEFT keeps them in float32, and norms of bfloat16 weights round, to about 0.01 nats a token; LoRA is exact."""
    differences = []
    for config in (RIGHT["lora"], RIGHT["dora"]):
        policy, reference = scores(trainer(tmp_path, model=model().bfloat16(), peft_config=config))
        differences.append((policy - reference).abs().max())
    assert differences[0] == 0
    assert differences[1] < 1


def test_noise_is_refused_also_where_the_reference_is_given(tmp_path):
    with pytest.raises(ValueError, match="draw random numbers in each pass"):
        trainer(tmp_path, model=model(), ref_model=model(), peft_config=peft.PveraConfig(r=4))


@pytest.mark.parametrize("name", ["lora", "loha", "dora", "saved head", "tokens", "householder"])
def test_a_frozen_copy_of_adapters_is_the_initial_policy_before_and_after_steps(tmp_path, name):
    wrapped = wrap_with_adapters(model(), RIGHT[name])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (each for each in wrapped.parameters() if each.requires_grad):
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    initial = scores(trainer(tmp_path, model=wrapped, ref_model=copy.deepcopy(wrapped)))[1]
    run = trainer(tmp_path, model=wrapped, max_steps=3, learning_rate=0.03, warmup_steps=0)
    assert all(torch.equal(each, initial) for each in scores(run))
    run.train()
    policy, reference = scores(run)
    assert torch.equal(reference, initial)
    assert not torch.equal(policy, initial)


def test_weights_that_a_user_has_unfrozen_beside_saved_adapters_are_refused(tmp_path):
    wrapped = wrap_with_adapters(model(), lora())
    wrapped.get_input_embeddings().weight.requires_grad_(True)
    with pytest.raises(ValueError, match="training changes 1 weights that are no adapter's, such as .*wte.weight"):
        trainer(tmp_path, model=wrapped)


TIED = {"weight_tying": True}
ON_THE_HEAD = {
    "lora": (lora(target_modules=["ff_out"]), {}, "target_modules={'ff_out'} puts adapters on the language"),
    "loha": (peft.LoHaConfig(r=2, target_modules=["ff_out"]), {}, "puts adapters on the language-model head"),
    "ia3": (
        peft.IA3Config(target_modules=["ff_out"], feedforward_modules=["ff_out"]), {},
        "puts adapters on the language-model head",
    ),
    "parameter": (lora(target_parameters=["transformer.ff_out.weight"]), {}, "target_parameters=.* puts adapters on"),
    "tied": (lora(target_modules=["wte"]), TIED, r"head \(the input embedding is the head of this model, too\)"),
    "tied tokens": (lora(trainable_token_indices={"wte": [3]}), TIED, "trainable_token_indices={'wte': .3.} puts"),
}  # fmt: skip


@pytest.mark.parametrize("name", ON_THE_HEAD)
@pytest.mark.parametrize("make", [trainer, sft_trainer])
def test_adapters_that_the_head_would_not_apply_are_refused(tmp_path, name, make):
    config, changes, message = ON_THE_HEAD[name]
    with pytest.raises(ValueError, match=message):
        make(tmp_path, model=model(**changes), peft_config=config)


def test_a_tied_head_that_is_saved_whole_computes_with_the_trained_weight(tmp_path):
    run = trainer(tmp_path, model=model(**TIED), peft_config=lora(modules_to_save=["wte"]), max_steps=2)
    initial = scores(run)[1]
    run.train()
    merged = copy.deepcopy(run.model).merge_and_unload()
    again = trainer(tmp_path, model=merged, ref_model=model(**TIED))
    assert (scores(again)[0] - scores(run)[0]).abs().max() < 1e-4
    assert torch.equal(scores(run)[1], initial)


def test_stacked_experts_start_at_the_reference(tmp_path):
    ids = {key: value for key, value in IDS.items() if key != "vocab_size"}
    moe = tiny_moe(seed=1, dtype=torch.float32, **(ids | {"vocab_size": 262}))
    run = trainer(tmp_path, model=moe, peft_config=lora(target_parameters=["mlp.experts.down_proj"]), max_steps=2)
    policy, initial = scores(run)
    assert torch.equal(policy, initial)
    run.train()
    assert torch.equal(scores(run)[1], initial)


def test_dropout_of_layers_that_have_none_is_counted_and_set_to_zero(tmp_path, caplog):
    """LoHa drops modules and ranks itself: two scores of one plan would be nats apart."""
    run = trainer(tmp_path, model=model(), peft_config=RIGHT["loha"])
    assert "7 dropout layers were set to 0" in caplog.text
    rates = [rate for each in run.model.modules() for rate in getattr(each, "module_dropout", {}).values()]
    assert rates == [0.0] * 7
