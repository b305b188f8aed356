"""LLaDA-MoE: the reference's numbers, expert paths that agree, published names, and a router that stays balanced."""

import json
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, tiny_moe
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llada import LLaDAMoEConfig, LLaDAMoEModelLM, generate
from llada.models.llada_moe import MoE, router_losses


def some_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 39, (rows, length), generator=torch.Generator().manual_seed(seed))


def reference_directory(folder: Path) -> Path:
    """The reference model as a published directory: `auto_map`, `model_type` "llada", one tensor for each expert."""
    config = json.loads((FIXTURES / "moe_base.json").read_text())["config"]
    auto_map = {"AutoConfig": "configuration_lladamoe.LLaDAConfig", "AutoModel": "modeling_lladamoe.LLaDAMoEModelLM"}
    config |= {"model_type": "llada", "architectures": ["LLaDAMoEModelLM"], "auto_map": auto_map, "mask_token_id": 159}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(load_file(FIXTURES / "moe_base.weights.safetensors"), folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("experts", ["eager", "grouped_mm", "batched_mm"])
def test_logits_and_router_logits_of_the_reference(tmp_path, experts):
    golden = load_file(FIXTURES / "moe_base.io.safetensors")
    model = AutoModel.from_pretrained(reference_directory(tmp_path), experts_implementation=experts).eval()
    assert type(model) is LLaDAMoEModelLM
    found = {}
    for index, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda module, inputs, output, index=index: found.update({index: output[1]}))
    with torch.no_grad():
        plain = model(golden["input_ids"]).logits
        routers = dict(found)
        padded = model(golden["input_ids_leftpad"], attention_mask=golden["attention_mask_leftpad"]).logits
    real = golden["attention_mask_leftpad"].bool()
    assert (plain - golden["logits"]).abs().max() <= 2e-5
    assert (padded - golden["logits_leftpad"])[real].abs().max() <= 2e-5
    for index, logits in routers.items():
        assert (logits.flatten(0, 1) - golden[f"router_logits.{index}"]).abs().max() <= 2e-5


@pytest.mark.parametrize("logits_eos_inf", [False, True])
def test_sampling_of_the_reference_where_eos_ties(tmp_path, logits_eos_inf):
    """`confidence_eos_eot_inf` with frequent EOS (92) and end-of-turn (69): tokens of the official sampler."""
    prompt = [146, 59, 126, 8, 123, 13, 27, 64, 17]
    answer = [141, 141, 69, 18, 69, 69, 69, 18, 18, 69, 69, 69, 69, 69, 38, 18, 18, 18, 38, 38, 38, 38, 18, 9]
    settings = dict(gen_length=24, steps=12, block_length=24, eos_token_id=92, eot_token_id=69, stop_at_eos=False)
    settings |= dict(confidence_eos_eot_inf=True, logits_eos_inf=logits_eos_inf)
    model = AutoModel.from_pretrained(reference_directory(tmp_path)).eval()
    assert generate(model, torch.tensor([prompt]), **settings)[0].tolist() == prompt + answer
    padded, mask = torch.tensor([[0, 0, *prompt]]), torch.tensor([[0, 0] + [1] * 9])
    assert generate(model, padded, mask, **settings)[0, 2:].tolist() == prompt + answer


def test_bfloat16_logits_stay_as_close_to_fp32_as_the_reference_does(tmp_path):
    golden = load_file(FIXTURES / "moe_base.io.safetensors")
    model = AutoModel.from_pretrained(reference_directory(tmp_path), dtype=torch.bfloat16).eval()
    with torch.no_grad():
        error = (model(golden["input_ids"]).logits.float() - golden["logits"]).abs().mean()
    assert error <= 1.2 * (golden["logits_bf16"] - golden["logits"]).abs().mean()


def plain_loop(experts, h_ND, chosen_NK, weight_NK):
    """Every expert on its own tokens, as the formula says."""
    out_ND = torch.zeros_like(h_ND)
    for expert in range(experts.num_experts):
        token, rank = (chosen_NK == expert).nonzero(as_tuple=True)
        gate, up = (h_ND[token] @ experts.gate_up_proj[expert].T).chunk(2, -1)
        value = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
        out_ND = out_ND.index_add(0, token, value * weight_NK[token, rank, None])
    return out_ND


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [("eager", torch.float64, 1e-10), ("batched_mm", torch.float64, 1e-10), ("grouped_mm", torch.float32, 1e-5)],
)
def test_fast_experts_equal_the_loop_with_their_gradients(name, dtype, bound):
    """One expert of eight is never chosen. (`grouped_mm` has no float64.)"""
    experts = tiny_moe(num_experts=8, num_experts_per_tok=3, dtype=dtype).model.layers[0].mlp.experts
    experts.config._experts_implementation_internal = name
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(11, 32, generator=generator, dtype=dtype).requires_grad_()
    chosen = torch.rand(11, 7, generator=generator).topk(3, -1).indices
    weight = torch.rand(11, 3, generator=generator, dtype=dtype).requires_grad_()
    found = []
    for run in (experts, lambda *inputs: plain_loop(experts, *inputs)):
        out = run(h, chosen, weight)
        gradients = torch.autograd.grad((out * torch.arange(32)).sum(), [h, weight, *experts.parameters()])
        found.append([out, *gradients])
    for fast, plain in zip(*found, strict=True):
        assert (fast - plain).abs().max() <= bound * max(1.0, plain.abs().max().item())


@pytest.mark.parametrize("inner", [24, 22])
def test_odd_sizes_train_too(inner):
    """Rows of 88 bytes, which grouped_mm refuses, go the other way."""
    model = tiny_moe(expert_intermediate_size=inner, dtype=torch.float32)
    assert model.model.layers[0].mlp.experts.takes(torch.float32) is (inner == 24)
    model(some_tokens(2, 9)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_router_does_not_renormalise_and_norm_topk_prob_is_ignored():
    """By hand: y = sum over the top 2 of p_e expert_e(h), with p from a softmax over all experts."""
    torch.manual_seed(0)
    config = tiny_moe(num_experts_per_tok=2, norm_topk_prob=True).config
    layer, h = tiny_moe(num_experts_per_tok=2).model.layers[0].mlp, torch.randn(1, 1, 32, dtype=torch.float64)
    assert isinstance(layer, MoE)
    assert config.norm_topk_prob is True  # kept in the file
    p, expected = layer.gate(h).softmax(-1)[0, 0], 0
    for e in p.topk(2).indices:
        gate, up = (layer.experts.gate_up_proj[e] @ h[0, 0]).chunk(2)
        expected = expected + p[e] * (layer.experts.down_proj[e] @ (torch.nn.functional.silu(gate) * up))
    assert (layer(h)[0][0, 0] - expected).abs().max() < 1e-12


def test_router_losses_by_hand():
    """The docstring's numbers; a pad changes nothing; balanced routing gives k."""
    logits = torch.tensor([[[3.0, 1.0]]], dtype=torch.float64).log()
    assert router_losses(logits, torch.ones(1, 1), 1)[0].tolist() == pytest.approx([1.5, 1.9218], abs=1e-4)
    padded = torch.cat([torch.randn(1, 2, 2, dtype=torch.float64), logits], 1)
    assert router_losses(padded, torch.tensor([[0, 0, 1]]), 1)[0].tolist() == pytest.approx([1.5, 1.9218], abs=1e-4)
    balanced = 9 * torch.eye(4, dtype=torch.float64)[None] + 9 * torch.eye(4, dtype=torch.float64).roll(1, 1)[None]
    assert router_losses(balanced, torch.ones(1, 4), 2)[0, 0].item() == pytest.approx(2.0)


def test_one_sequence_has_the_load_balance_of_transformers():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(1, 7, 6, generator=torch.Generator().manual_seed(0))
    expected = load_balancing_loss_func((logits[0],), 6, 2)
    assert router_losses(logits, torch.ones(1, 7), 2)[0, 0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_router_losses_are_of_training_only_and_do_not_depend_on_the_batch():
    model, tokens = tiny_moe(), some_tokens(3, 9)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = 0
    assert model(tokens).auxiliary_losses is None
    together = model.train()(tokens, attention_mask=mask).auxiliary_losses
    alone = torch.cat([model(tokens[i : i + 1], attention_mask=mask[i : i + 1]).auxiliary_losses for i in range(3)])
    assert together.shape == (3, 2)
    assert (together - alone).abs().max() < 1e-12


def test_dense_layers_where_the_frequency_is_0(tmp_path):
    model = tiny_moe(moe_layer_freq=[0, 1], dtype=torch.float32)
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {f"model.layers.0.mlp.{name}_proj.weight" for name in ("gate", "up", "down")} <= names
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(some_tokens(1, 5)).logits, model(some_tokens(1, 5)).logits)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 2}])
def test_save_writes_the_published_names(tmp_path, changes):
    model, tokens = tiny_moe(dtype=torch.float32, **changes), some_tokens(2, 9)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tensors = {k: v for path in tmp_path.glob("*.safetensors") for k, v in load_file(path).items()}
    assert tensors["model.layers.1.mlp.experts.3.gate_proj.weight"].shape == (24, 32)
    assert tensors["model.layers.1.mlp.experts.3.down_proj.weight"].shape == (32, 24)
    assert not [name for name in tensors if "gate_up" in name]
    assert ("lm_head.weight" in tensors) is not bool(changes)
    for auto in (AutoModel, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is LLaDAMoEModelLM
        assert type(loaded.config) is LLaDAMoEConfig
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_count_of_the_published_7b():
    with torch.device("meta"):
        model = LLaDAMoEModelLM(LLaDAMoEConfig())
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_356_880_896


@pytest.mark.parametrize(
    "fields",
    [
        {"shared_expert_intermediate_size": 64}, {"moe_router_enable_expert_bias": True}, {"clip_qkv": 8.0},
        {"partial_rotary_factor": 0.5}, {"attention_bias": True}, {"alibi": True}, {"scale_logits": True},
        {"moe_layer_freq": [1]}, {"num_experts_per_tok": 9}, {"hidden_size": 30}, {"rope_scaling": {"factor": 2}},
    ],
)  # fmt: skip
def test_fields_that_would_change_the_numbers_are_refused_by_name(fields):
    with pytest.raises(ValueError, match=f"config field {next(iter(fields))}"):
        tiny_moe(**fields)


def test_fields_that_the_released_code_ignores_are_ignored(tmp_path):
    fields = {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "moe_router_score_function": "sigmoid"}
    fields |= {"router_num_group": 4, "router_topk_group": 2}
    tokens = some_tokens(1, 6)
    assert torch.equal(tiny_moe(**fields)(tokens).logits, tiny_moe()(tokens).logits)


def test_both_layouts_share_a_model_type_and_are_told_apart(tmp_path):
    reference_directory(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LLaDAMoEConfig
    assert AutoConfig.from_pretrained(tmp_path).max_sequence_length == 256
