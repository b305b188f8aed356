import json
from itertools import product

import pytest
import torch
from conftest import FIXTURES, reference_model, tiny_config, tiny_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llada import LLaDAConfig, LLaDAModelLM
from llada.denoiser import NOT_SCORED
from llada.models.common import head


def some_tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 39, (rows, length), generator=torch.Generator().manual_seed(seed))


# Flex attention compiles its mask (seconds, a C compiler, and warnings of torch's own).
FLEX = pytest.param("flex_attention", marks=[pytest.mark.slow, pytest.mark.filterwarnings("default")])


@pytest.mark.parametrize("attention", ["sdpa", "eager", FLEX])
@pytest.mark.parametrize("name", ["dense_mha", "dense_gqa"])
def test_logits_of_the_reference_plain_and_left_padded(name, attention):
    golden, model = load_file(FIXTURES / f"{name}.io.safetensors"), reference_model(name)
    model.set_attn_implementation(attention)
    with torch.no_grad():
        plain = model(golden["input_ids"]).logits
        padded = model(golden["input_ids_leftpad"], attention_mask=golden["attention_mask_leftpad"]).logits
    real = golden["attention_mask_leftpad"].bool()
    assert (plain - golden["logits"]).abs().max() <= 1e-5
    assert (padded - golden["logits_leftpad"])[real].abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["dense_mha", "dense_gqa"])
def test_bfloat16_logits_stay_as_close_to_fp32_as_the_reference_does(name):
    golden, model = load_file(FIXTURES / f"{name}.io.safetensors"), reference_model(name).bfloat16()
    with torch.no_grad():
        error = (model(golden["input_ids"]).logits.float() - golden["logits"]).abs().mean()
    assert error <= 1.2 * (golden["logits_bf16"] - golden["logits"]).abs().mean()


@pytest.mark.parametrize("weight_tying", [False, True])
def test_masked_only_chunked_head_equals_the_full_head(weight_tying, monkeypatch):
    """Values and gradients to 1e-12 in float64, with chunks that do and do not divide the number of targets."""
    tokens, scored = some_tokens(3, 11), torch.rand(3, 11, generator=torch.Generator().manual_seed(1)) < 0.5
    full = tiny_model(weight_tying=weight_tying)
    log_probs = full(tokens).logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * scored
    (log_probs * torch.arange(11)).sum().backward()
    for chunk, kept in product((4, int(scored.sum()), 1024), (0, 2**24)):
        model = tiny_model(weight_tying=weight_tying)
        monkeypatch.setattr(head, "CHUNK_ON_CPU", chunk * model.config.vocab_size)
        monkeypatch.setattr(head, "KEPT", kept)
        fast = model(tokens, target_ids=tokens.masked_fill(~scored, NOT_SCORED)).log_probs
        (fast * torch.arange(11)).sum().backward()
        assert (fast - log_probs).abs().max() < 1e-12
        for parameter, expected in zip(model.parameters(), full.parameters(), strict=True):
            assert (parameter.grad - expected.grad).abs().max() < 1e-12


def test_no_target_still_runs_the_head_with_a_zero_gradient():
    """DDP and ZeRO-3 need the same parameters in every step on every process, targets or not."""
    model = tiny_model()
    model(some_tokens(1, 5), target_ids=torch.full((1, 5), NOT_SCORED)).log_probs.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


def test_logits_at_chosen_positions_are_those_of_the_full_head():
    model, tokens, at = (
        tiny_model(),
        some_tokens(2, 7),
        torch.tensor([[1, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 1]]).bool(),
    )
    assert (model(tokens, logits_at=at).logits - model(tokens).logits[at]).abs().max() < 1e-12


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_sequences_equal_separate_ones(attention):
    """Block-diagonal attention and restarted positions; ids may repeat in segments that do not touch."""
    model, tokens = tiny_model(), some_tokens(2, 12)
    model.set_attn_implementation(attention)
    segments = torch.tensor([[0] * 5 + [1] * 4 + [2] * 3, [3] * 2 + [1] * 10])
    packed = model(tokens, segment_ids=segments).logits
    for row, start, end in ((0, 0, 5), (0, 5, 9), (0, 9, 12), (1, 0, 2), (1, 2, 12)):
        alone = model(tokens[row : row + 1, start:end]).logits
        assert (packed[row, start:end] - alone[0]).abs().max() < 1e-12


def test_packed_rows_may_be_padded():
    model, tokens = tiny_model(), some_tokens(1, 9)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0]])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    packed = model(tokens, attention_mask=mask, segment_ids=segments).logits
    assert (packed[0, 3:7] - model(tokens[:, 3:7]).logits[0]).abs().max() < 1e-12


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_equals_the_row_alone(side):
    model, tokens = tiny_model(), some_tokens(1, 6)
    pads, ones = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 6, dtype=torch.long)
    order = (pads, tokens) if side == "left" else (tokens, pads)
    mask = torch.cat((pads, ones) if side == "left" else (ones, pads), -1)
    padded = model(torch.cat(order, -1), attention_mask=mask).logits[mask.bool()]
    assert (padded - model(tokens).logits[0]).abs().max() < 1e-12


def test_gradient_checkpointing_changes_nothing():
    tokens, gradients = some_tokens(2, 8), []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in model.model.transformer.blocks)
        model(tokens, target_ids=tokens).log_probs.sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert (plain - checkpointed).abs().max() < 1e-12


def test_attention_is_bidirectional():
    model, tokens = tiny_model(), some_tokens(1, 6)
    other = tokens.clone()
    other[0, -1] = 38 if tokens[0, -1] != 38 else 37
    assert (model(tokens).logits[0, 0] - model(other).logits[0, 0]).abs().max() > 1e-6


def test_names_and_count_of_the_8b_checkpoint():
    """2*126464*4096 + 32*(4*4096^2 + 3*4096*12288 + 2*4096) + 4096 = 8,015,581,184 parameters in 291 tensors."""
    with torch.device("meta"):
        model = LLaDAModelLM(LLaDAConfig(n_kv_heads=32, mlp_hidden_size=12288))
    names = dict(model.named_parameters())
    assert len(names) == 291
    assert sum(p.numel() for p in names.values()) == 8_015_581_184
    assert "model.transformer.blocks.31.ff_out.weight" in names
    assert "model.transformer.ff_out.weight" in names


def test_names_equal_the_published_index(shared):
    index = json.loads((shared / "checkpoints/LLaDA-8B-Instruct/model.safetensors.index.json").read_text())
    config = AutoConfig.from_pretrained(shared / "checkpoints/LLaDA-8B-Instruct")
    with torch.device("meta"):
        model = LLaDAModelLM(config)
    assert type(config) is LLaDAConfig
    assert config.mask_token_id == 126336
    assert config.n_kv_heads == 32
    assert set(model.state_dict()) == set(index["weight_map"])


@pytest.mark.parametrize("changes", [{}, {"weight_tying": True}, {"include_qkv_bias": True, "n_kv_heads": 1}])
def test_save_and_load_through_the_auto_classes(changes, tmp_path):
    model, tokens = tiny_model(dtype=torch.float32, **changes), some_tokens(2, 9)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    names = [name for path in tmp_path.glob("*.safetensors") for name in load_file(path)]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["LLaDAModelLM"]
    for auto in (AutoModel, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is LLaDAModelLM
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_published_directories_need_no_remote_code(tmp_path):
    """A config with `auto_map` and fields of the original code, beside one safetensors file, loads our class."""
    model = tiny_model(dtype=torch.float32)
    save_file(model.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    extra = {"auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"}, "flash_attention": True, "init_fn": "mitchell"}
    fields = {key: value for key, value in tiny_config().to_dict().items() if key != "transformers_version"}
    (tmp_path / "config.json").write_text(json.dumps(fields | extra | {"model_type": "llada", "use_cache": False}))
    assert torch.equal(AutoModel.from_pretrained(tmp_path)(some_tokens(1, 4)).logits, model(some_tokens(1, 4)).logits)


def test_new_models_start_with_their_documented_scales():
    """Fan-in 32 -> standard deviation 32^-1/2; the residual projections shrink by (2 * n_layers)^-1/2."""
    model = tiny_model(d_model=128, n_heads=4, mlp_hidden_size=256, n_layers=3)
    block = model.model.transformer.blocks[1]
    assert block.q_proj.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert block.ff_out.weight.std().item() == pytest.approx((6 * 256) ** -0.5, rel=0.05)
    assert block.attn_out.weight.std().item() == pytest.approx((6 * 128) ** -0.5, rel=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alibi": True}, "config field alibi=True is not supported: it must be False"),
        ({"attention_layer_norm": True}, "attention_layer_norm"),
        ({"input_emb_norm": True}, "input_emb_norm"),
        ({"scale_logits": True}, "scale_logits"),
        ({"activation_type": "gelu"}, "activation_type='gelu'"),
        ({"residual_dropout": 0.1}, "residual_dropout=0.1"),
        ({"num_experts": 8}, "num_experts is of a mixture of experts"),
        ({"d_model": 30}, "d_model=30 must be n_heads=4 times an even head size"),
        ({"n_kv_heads": 3}, "n_kv_heads=3 must divide n_heads=4"),
        ({"embedding_size": 39}, "embedding_size=39 must be at least vocab_size=40"),
    ],
)
def test_configs_that_would_change_the_numbers_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**fields)


def test_calls_that_cannot_work_are_refused():
    model, tokens = tiny_model(), some_tokens(1, 5)
    with pytest.raises(ValueError, match="65 tokens does not fit the model's context of 64"):
        model(some_tokens(1, 65))
    with pytest.raises(ValueError, match="target_ids .* or logits_at"):
        model(tokens, target_ids=tokens, logits_at=tokens > 0)
