"""Directories laid out like the published checkpoints, with small random weights; and what does not fit them."""

import json
from pathlib import Path

import pytest
import torch
from conftest import tiny_model, tiny_moe
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from llada.models.common.lora import wrap_with_adapters

TOKENS = torch.randint(3, 39, (2, 9), generator=torch.Generator().manual_seed(0))
PUBLISHED = {
    "dense": (tiny_model, {}),
    "tied, grouped queries": (tiny_model, {"weight_tying": True, "n_kv_heads": 1, "max_sequence_length": 8192}),
    "moe": (tiny_moe, {}),
}


def published(name: str, folder: Path, shards: int = 3):
    """A published directory: sharded files, an index, and a config with `auto_map` of remote code that is not there."""
    build, changes = PUBLISHED[name]
    model = build(dtype=torch.float32, **changes)
    size = sum(p.numel() for p in model.parameters()) * 4
    model.save_pretrained(folder, max_shard_size=size // (shards - 1) if shards > 1 else "1GB")
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llada"
    config["auto_map"] = {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_directories_load_through_the_auto_classes_and_survive_a_save(name, tmp_path):
    model = published(name, tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) >= 2
    for auto in (AutoModel, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path / "a")
        assert type(loaded) is type(model)
        assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    loaded.save_pretrained(tmp_path / "b")
    again = AutoModel.from_pretrained(tmp_path / "b", device_map="cpu")
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    assert type(AutoConfig.from_pretrained(tmp_path / "b")) is type(model.config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_bfloat16_weights_load_as_they_are_and_compute_within_their_rounding(name, tmp_path):
    model = published(name, tmp_path / "a")
    AutoModel.from_pretrained(tmp_path / "a").bfloat16().save_pretrained(tmp_path / "b")
    half = AutoModel.from_pretrained(tmp_path / "b", dtype="auto")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        exact = AutoModel.from_pretrained(tmp_path / "b", dtype=torch.float32)(TOKENS).logits
        error = (half(TOKENS).logits.float() - exact).abs()
    assert error.mean() <= 2**-8 * exact.abs().mean() * model.config.num_hidden_layers * 2


def edit(file: Path, change) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_missing_unknown_and_misshapen_tensors_are_listed(name, tmp_path):
    published(name, tmp_path, shards=1)
    norm = "model.transformer.ln_f.weight" if name == "dense" else "model.norm.weight"
    kept = load_file(tmp_path / "model.safetensors")[norm]
    edit(tmp_path / "model.safetensors", lambda tensors: tensors.pop(norm))
    with pytest.raises(ValueError, match=f"1 tensors missing: {norm}"):
        AutoModel.from_pretrained(tmp_path)
    edit(tmp_path / "model.safetensors", lambda tensors: tensors.update({norm: kept, "model.other": kept.clone()}))
    with pytest.raises(ValueError, match=r"1 tensors not of this model: model\.other"):
        AutoModel.from_pretrained(tmp_path)
    edit(tmp_path / "model.safetensors", lambda tensors: (tensors.pop("model.other"), tensors.update({norm: kept[:5]})))
    with pytest.raises(ValueError, match=rf"1 tensors of another shape: {norm} \(5,\) for \(32,\)"):
        AutoModel.from_pretrained(tmp_path)


def test_a_missing_expert_is_an_error(tmp_path):
    published("moe", tmp_path, shards=1)
    edit(tmp_path / "model.safetensors", lambda tensors: tensors.pop("model.layers.1.mlp.experts.2.up_proj.weight"))
    with pytest.raises(ValueError, match=r"lacks 1 tensors: model\.layers\.1\.mlp\.experts\.2\.up_proj\.weight"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_truncated_shard_is_named(name, tmp_path):
    published(name, tmp_path)
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{shard.name} cannot be read"):
        AutoModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_adapters_save_load_merge_and_unload(name, tmp_path):
    base = published(name, tmp_path / "base")
    wrapped = wrap_with_adapters(AutoModel.from_pretrained(tmp_path / "base"), LoraConfig(r=2, init_lora_weights=False))
    trained = sorted({n.split(".")[-4] for n, p in wrapped.named_parameters() if p.requires_grad})
    expected = {"dense": ["attn_out", "ff_out", "ff_proj", "k_proj", "q_proj", "up_proj", "v_proj"]}
    assert trained == expected.get(name, ["k_proj", "o_proj", "q_proj", "v_proj"])
    with torch.no_grad():
        adapted = wrapped(input_ids=TOKENS).logits
    assert (adapted - base(TOKENS).logits).abs().max() > 1e-3
    wrapped.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    assert (again(input_ids=TOKENS).logits - adapted).abs().max() < 1e-5
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert (AutoModel.from_pretrained(tmp_path / "merged")(TOKENS).logits - adapted).abs().max() < 1e-4
    unloaded = wrapped.unload()
    assert torch.equal(unloaded(TOKENS).logits, base(TOKENS).logits)


def test_adapters_on_the_experts_through_target_parameters(tmp_path):
    base = published("moe", tmp_path / "base")
    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    wrapped = wrap_with_adapters(base, LoraConfig(r=2, lora_dropout=0.0, target_parameters=experts))
    assert [name for name, p in wrapped.named_parameters() if p.requires_grad and "experts" in name]
    wrapped(input_ids=TOKENS).logits.sum().backward()


WIDE = {"dense": dict(d_model=64, mlp_hidden_size=128), "moe": dict(hidden_size=64, expert_intermediate_size=64)}


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_four_bit_weights_leave_head_router_and_experts_alone_and_take_adapters(name, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    PUBLISHED[name][0](dtype=torch.float32, **WIDE[name]).save_pretrained(tmp_path)
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = AutoModel.from_pretrained(tmp_path, quantization_config=four, dtype=torch.float32)
    four_bit = {n.split(".")[-2] for n, p in model.named_parameters() if not p.dtype.is_floating_point}
    dense = {"q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out"}
    assert four_bit == (dense if name == "dense" else {"q_proj", "k_proj", "v_proj", "o_proj"})
    assert model.get_output_embeddings().weight.dtype is torch.float32
    wrapped = wrap_with_adapters(model, LoraConfig(r=2))
    wrapped(input_ids=TOKENS, target_ids=TOKENS).log_probs.sum().backward()
    assert all(p.grad is not None for p in wrapped.parameters() if p.requires_grad)
