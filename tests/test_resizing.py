"""Resized vocabularies: rows kept and drawn as transformers does, sizes in the config, ids that stay valid."""

import pytest
import torch
from conftest import tiny_model, tiny_moe
from test_sft import TOKENIZER
from transformers import AutoModelForCausalLM, AutoTokenizer

import llada
from llada import MaskedDiffusionConfig, MaskedDiffusionTrainer
from llada.models.common.head import Head

TOKENS = torch.randint(3, 39, (2, 6), generator=torch.Generator().manual_seed(0))
MODELS = {
    "dense": (tiny_model, {}),
    "dense, tied": (tiny_model, {"weight_tying": True}),
    "dense, spare rows": (tiny_model, {"embedding_size": 44}),
    "moe": (tiny_moe, {}),
    "moe, tied": (tiny_moe, {"tie_word_embeddings": True}),
}


def build(name: str):
    make, fields = MODELS[name]
    return make(dtype=torch.float32, **fields)


@pytest.mark.parametrize("rows", [{"new_num_tokens": 48}, {"new_num_tokens": 45, "pad_to_multiple_of": 16}])
@pytest.mark.parametrize("name", MODELS)
def test_more_rows_keep_the_old_ones_and_what_they_predict(name, rows, tmp_path):
    model, plain = build(name), build(name)
    old = plain.get_input_embeddings().num_embeddings
    torch.manual_seed(0)
    embedding = model.resize_token_embeddings(**rows)
    assert embedding is model.get_input_embeddings()
    assert embedding.num_embeddings == len(embedding.weight) == 48
    assert (model.config.vocab_size, model.config.embedding_size, model.denoiser_spec.vocabulary) == (48, 48, 48)
    logits = model(TOKENS).logits
    assert logits.shape == (2, 6, 48)
    assert (logits[..., :old] - plain(TOKENS).logits).abs().max() < 1e-5
    mean = plain.get_input_embeddings().weight.mean(0)  # transformers draws with a covariance of 1e-9 of the old one
    assert (embedding.weight[old:] - mean).abs().max() < 1e-3
    tied = "tied" in name
    assert (model.get_output_embeddings() is embedding) == tied
    assert tied or type(model.get_output_embeddings()) is Head  # which scores targets in one call, as ZeRO-3 needs
    model(TOKENS, target_ids=TOKENS).log_probs.sum().backward()
    assert embedding.weight.grad.shape == (48, 32)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(TOKENS).logits, logits)


def test_rows_without_mean_resizing_have_the_scale_of_new_models():
    model = tiny_model(d_model=256, mlp_hidden_size=64)
    model.resize_token_embeddings(440, mean_resizing=False)
    for weight in (model.get_input_embeddings().weight[40:], model.get_output_embeddings().weight[40:]):
        assert weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
        assert abs(weight.mean().item()) < 1e-3


def test_fewer_rows_and_the_same_number():
    model, plain = tiny_model(vocab_size=60, mask_token_id=39), tiny_model(vocab_size=60, mask_token_id=39)
    assert model.resize_token_embeddings() is model.get_input_embeddings()
    assert model.resize_token_embeddings(60).num_embeddings == model.config.vocab_size == 60
    model.resize_token_embeddings(40)
    assert (model.config.vocab_size, model.config.embedding_size) == (40, 40)
    assert (model(TOKENS).logits - plain(TOKENS).logits[..., :40]).abs().max() < 1e-12


BAD = [
    ({"new_num_tokens": 39}, r"new_num_tokens=39 leaves no row for mask_token_id=39: it must be at least 40"),
    ({"new_num_tokens": 1}, r"no row for mask_token_id=39, eos_token_id=1, eot_token_id=2"),
    ({"new_num_tokens": 0}, "new_num_tokens=0 must be a positive integer"),
    ({"new_num_tokens": -1}, "new_num_tokens=-1 must be a positive integer"),
    ({"new_num_tokens": 48.0}, r"new_num_tokens=48\.0 must be a positive integer"),
    ({"new_num_tokens": True}, "new_num_tokens=True must be a positive integer"),
    ({"new_num_tokens": "48"}, "new_num_tokens='48' must be a positive integer"),
    ({"new_num_tokens": 48, "pad_to_multiple_of": 0}, "pad_to_multiple_of=0 must be a positive integer"),
    ({"pad_to_multiple_of": -8}, "pad_to_multiple_of=-8 must be a positive integer"),
    ({"pad_to_multiple_of": 1.5}, r"pad_to_multiple_of=1\.5 must be a positive integer"),
]


@pytest.mark.parametrize(("sizes", "message"), BAD)
@pytest.mark.parametrize("name", ["dense", "moe, tied"])
def test_sizes_that_cannot_be_leave_the_model_as_it_was(name, sizes, message):
    model = build(name)
    with pytest.raises(ValueError, match=message):
        model.resize_token_embeddings(**sizes)
    assert len(model.get_input_embeddings().weight) == model.config.vocab_size == 40


def test_a_mask_token_that_is_added_to_a_tokenizer(tmp_path):
    """What a user does whose base model has no mask token: add it, resize, train; the saved model has it."""
    none = {f"{name}_token_id": None for name in ("mask", "eos", "pad", "eot")}
    model = tiny_model(dtype=torch.float32, vocab_size=262, **none)
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokenizer.add_special_tokens({"mask_token": "<new mask>"})
    assert len(tokenizer) == 263
    args = dict(output_dir=str(tmp_path / "out"), max_steps=1, report_to="none", use_cpu=True, save_strategy="no")
    config = MaskedDiffusionConfig(**args, disable_tqdm=True, log_level="error")
    rows = [{"text": "some words"}]
    with pytest.raises(ValueError, match="tokenizer has 263 tokens but the model embeds 262"):
        MaskedDiffusionTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    model.resize_token_embeddings(len(tokenizer))
    run = MaskedDiffusionTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    run.train()
    run.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (loaded.denoiser_spec.mask_id, loaded.denoiser_spec.vocabulary) == (262, 263)
    assert (llada.generate(loaded, torch.tensor([[70]]), steps=2, gen_length=2, block_length=2) < 262).all()
