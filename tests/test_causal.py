"""The autoregressive model (config field `causal`): it sees the past only, its loss is exact, it samples to the right.

The plain form of every value is a loop over prefixes: one forward pass for each token, of the tokens before it alone.
"""

import pytest
import torch
from conftest import tiny_model, tiny_moe
from datasets import Dataset
from test_model import FLEX, some_tokens
from test_sft import IDS, PAIRS, TEXTS, TOKENIZER, trainer
from torch import Tensor
from transformers import AutoModelForCausalLM

import llada
from llada.cli.checkpoint import load_model
from llada.diffusion.causal import causal_log_likelihood
from llada.diffusion.likelihood import exact_elbo, log_likelihood
from llada.diffusion.random_streams import generator_for
from llada.sampling.left_to_right import causal_generate
from vrpo import VRPOConfig, VRPOTrainer

CAUSAL = tiny_model(causal=True)


def by_prefixes(model, tokens_L: Tensor, start: int) -> Tensor:
    """The log-probability of each token from `start` on, from forward passes of its prefixes."""
    return torch.stack([
        model(tokens_L[None, :i]).logits[0, -1].log_softmax(-1)[tokens_L[i]] for i in range(start, len(tokens_L))
    ])  # fmt: skip


@pytest.mark.parametrize("attention", ["sdpa", "eager", FLEX])
@pytest.mark.parametrize("build", [tiny_model, tiny_moe])
def test_logits_do_not_depend_on_later_tokens(build, attention):
    if attention == "flex_attention" and build is tiny_moe:
        pytest.skip("one model is enough")
    dtype = torch.float32 if attention == "flex_attention" else torch.float64
    model, tokens = build(causal=True, dtype=dtype), some_tokens(2, 9)
    model.set_attn_implementation(attention)
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    with torch.no_grad():
        whole = model(tokens).logits
        for length in (4,) if attention == "flex_attention" else (1, 4, 8):  # it compiles for each length
            assert (model(tokens[:, :length]).logits - whole[:, :length]).abs().max() < bound


@pytest.mark.parametrize("build", [tiny_model, tiny_moe])
def test_the_same_weights_give_other_logits_than_in_both_directions(build):
    """At every position but the last, which sees the same tokens in the first layer and other states above."""
    causal, both, tokens = build(causal=True), build(), some_tokens(1, 6)
    for a, b in zip(causal.parameters(), both.parameters(), strict=True):
        assert torch.equal(a, b)
    assert ((causal(tokens).logits - both(tokens).logits).abs().amax(-1) > 1e-6).all()


def test_logits_at_chosen_positions_are_those_of_the_full_head():
    tokens = some_tokens(2, 7)
    at = torch.tensor([[1, 0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0, 1]]).bool()
    assert (CAUSAL(tokens, logits_at=at).logits - CAUSAL(tokens).logits[at]).abs().max() < 1e-12


def test_packed_sequences_equal_separate_ones():
    tokens, segments = some_tokens(1, 9), torch.tensor([[0] * 5 + [1] * 4])
    packed = CAUSAL(tokens, segment_ids=segments).logits
    assert (packed[:, :5] - CAUSAL(tokens[:, :5]).logits).abs().max() < 1e-12
    assert (packed[:, 5:] - CAUSAL(tokens[:, 5:]).logits).abs().max() < 1e-12


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_likelihood_equals_a_loop_over_prefixes(attention):
    """Values and gradients, of rows alone and padded on both sides in one batch."""
    model = tiny_model(causal=True)
    model.set_attn_implementation(attention)
    tokens = some_tokens(2, 9)
    expected = torch.stack([by_prefixes(model, tokens[0], 2).sum(), by_prefixes(model, tokens[1, :6], 4).sum()])
    (expected * torch.tensor([1.0, 2.0])).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    rows, mask, response = torch.zeros(2, 13, dtype=torch.long), torch.zeros(2, 13, dtype=torch.long), None
    rows[0, 4:], rows[1, 1:7], mask[0, 4:], mask[1, 1:7] = tokens[0], tokens[1, :6], 1, 1
    response = torch.zeros(2, 13, dtype=torch.bool)
    response[0, 6:], response[1, 5:7] = True, True
    found = causal_log_likelihood(model, rows, response, mask)
    assert (found - expected).abs().max() < 1e-12
    (found * torch.tensor([1.0, 2.0])).sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).abs().max() < 1e-12


def test_a_response_needs_a_token_before_it():
    tokens, everything = some_tokens(2, 4), torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="row 0: the response has no token before it .* put BOS there"):
        causal_log_likelihood(CAUSAL, tokens, everything)
    padded = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with pytest.raises(ValueError, match="row 1: the response has no token before it"):
        causal_log_likelihood(CAUSAL, tokens, torch.tensor([[0, 1, 1, 1]]).bool().expand(2, -1), padded)


def continued(model, prompt: Tensor, length: int) -> Tensor:
    """The greedy continuation by whole forward passes, without EOS."""
    row = prompt[None]
    for _ in range(length):
        logits = model(row).logits[0, -1].index_fill(0, torch.tensor([39]), -torch.inf)
        row = torch.cat([row, logits.argmax()[None, None]], -1)
    return row[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_sampling_equals_a_loop_without_a_cache(attention):
    """Two prompts of different lengths in one batch, and each alone."""
    model, tokens = tiny_model(causal=True, eos_token_id=None), some_tokens(2, 5)
    model.set_attn_implementation(attention)
    mask = torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])
    found = causal_generate(model, tokens, mask, gen_length=12)
    assert torch.equal(found[0], continued(model, tokens[0], 12))
    assert torch.equal(found[1, 2:], continued(model, tokens[1, 2:], 12))
    assert torch.equal(causal_generate(model, tokens[:1], gen_length=12)[0], found[0])


def test_sampling_stops_at_eos():
    """The token that greedy sampling writes third in row 0 is made EOS: it fills the rest of that row only."""
    tokens = some_tokens(2, 5)
    free = causal_generate(tiny_model(causal=True, eos_token_id=None), tokens, gen_length=8)
    eos = int(free[0, 7])
    first = [row.tolist().index(eos) if eos in row.tolist() else 8 for row in free[:, 5:]]
    found = causal_generate(CAUSAL, tokens, gen_length=8, eos_token_id=eos)
    for row in range(2):
        kept = 5 + first[row]
        assert torch.equal(found[row, :kept], free[row, :kept])
        assert (found[row, kept:] == eos).all()
    assert first[0] <= 2


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_samples_follow_the_model_at_a_temperature(temperature):
    """Pairs of tokens in 20,000 samples against p(a) p(b | a), without MASK: within 4.5 standard errors each."""
    model = tiny_model(causal=True, vocab_size=6, mask_token_id=5, eos_token_id=None, dtype=torch.float32)
    rows, prompt = 20_000, torch.tensor([[3, 1]])
    found = causal_generate(
        model, prompt.expand(rows, -1), gen_length=2, temperature=temperature, generator=generator_for(3)
    )
    first_V = (model(prompt).logits[0, -1, :5] / temperature).softmax(-1)
    after = torch.cat([prompt.expand(5, -1), torch.arange(5)[:, None]], -1)
    joint = first_V[:, None] * (model(after).logits[:, -1, :5] / temperature).softmax(-1)
    counts = torch.zeros(5, 5).index_put_((found[:, 2], found[:, 3]), torch.ones(rows), accumulate=True)
    error = (joint * (1 - joint) / rows).sqrt()
    assert ((counts / rows - joint).abs() / error).max() < 4.5


def test_the_loss_of_sft_equals_a_loop_over_prefixes(tmp_path):
    """Mean over rows of the mean over response tokens, EOS included; evaluation reports the same, exactly."""
    run = trainer(tmp_path, model=tiny_model(causal=True, **IDS), eval_dataset=Dataset.from_list(PAIRS[:4]))
    batch = next(iter(run.get_train_dataloader()))
    expected = [
        -by_prefixes(run.model, row[mask.bool()], int(response.long().argmax())).mean()
        for row, mask, response in zip(
            batch["input_ids"], batch["attention_mask"], batch["response_mask"], strict=True
        )
    ]  # fmt: skip
    assert len({int(length) for length in batch["attention_mask"].sum(-1)}) > 1  # there is padding
    assert run.compute_loss(run.model, batch).item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-12)
    rows = [TOKENIZER(pair["prompt"])["input_ids"] for pair in PAIRS[:4]]
    texts = [[*TOKENIZER(pair["completion"])["input_ids"], IDS["eos_token_id"]] for pair in PAIRS[:4]]
    nats = [
        -by_prefixes(run.model, torch.tensor(row + text), len(row)) for row, text in zip(rows, texts, strict=True)
    ]  # fmt: skip
    found = run.evaluate()
    assert found["eval_loss"] == pytest.approx(sum(each.mean().item() for each in nats) / 4, abs=1e-9)
    bits = sum(each.sum().item() for each in nats) / torch.tensor(2.0).log().item()
    assert found["eval_bits_per_byte"] == pytest.approx(bits / sum(len(pair["completion"]) for pair in PAIRS[:4]))


@pytest.mark.parametrize("strategy", ["wrapped", "bfd"])
def test_the_loss_of_documents_leaves_out_what_nothing_predicts(tmp_path, strategy):
    """The first token of a row; of whole documents that share a row (bfd), the first of each, and none sees another."""
    documents = [{"text": text} for text in TEXTS]
    run = trainer(
        tmp_path, model=tiny_model(causal=True, **IDS), rows=documents, packing=True, packing_strategy=strategy,
        per_device_train_batch_size=2,
    )  # fmt: skip
    batch = next(iter(run.get_train_dataloader()))
    losses = []
    for index, (row, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)):
        segments = batch["segment_ids"][index] if strategy == "bfd" else torch.zeros_like(row)
        texts = [row[mask & (segments == number)] for number in segments[mask].unique()]
        assert strategy == "wrapped" or len(texts) > 1
        losses.append(-torch.cat([by_prefixes(run.model, text, 1) for text in texts]).mean())
    assert run.compute_loss(run.model, batch).item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-12)


def test_a_row_of_one_token_has_a_loss_of_zero(tmp_path):
    """The last row of concatenated documents may be as short."""
    rows = [{"text": "abc"}]
    run = trainer(tmp_path, model=tiny_model(causal=True, **IDS), rows=rows, eval_dataset=rows, max_length=3)
    batch = next(iter(run.get_eval_dataloader()))
    assert batch["attention_mask"].sum(-1).tolist() == [3, 1]
    losses = run.prediction_step(run.model, batch, True)
    assert losses[1][1] == 0
    assert losses[2].tolist() == [[2, 2], [1, 0]]


def test_training_learns_and_is_saved_as_autoregressive(tmp_path):
    model = tiny_model(causal=True, dtype=torch.float32, **IDS)
    run = trainer(tmp_path, torch.float32, model=model, learning_rate=1e-2, max_steps=60)
    run.train()
    losses = list(run.losses.values())
    assert losses[-1] < 0.5 * losses[0]
    run.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    tokens = some_tokens(1, 8)
    assert loaded.config.causal
    assert loaded.denoiser_spec.attention == "causal"
    assert "autoregressive" in run.model.model_tags
    assert "masked-diffusion" not in run.model.model_tags
    assert torch.equal(loaded(tokens).logits, run.model(tokens).logits)


def test_models_are_masked_ones_unless_they_say_so(shared):
    config = llada.LLaDAConfig.from_pretrained(shared / "checkpoints/LLaDA-8B-Instruct")
    assert not config.causal
    assert not config.denoiser_spec.shifted
    assert config.denoiser_spec.attention == "bidirectional"


@pytest.mark.parametrize(
    ("option", "value"), [("masks", "exact_count"), ("eval_draws", 8), ("eos_tail", "batch"), ("eos_tail", "2")]
)
def test_options_without_a_meaning_are_refused(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"{option}={value!r} has no meaning for an autoregressive model"):
        trainer(tmp_path, model=tiny_model(causal=True, **IDS), **{option: value})


TOKENS, RESPONSE = some_tokens(1, 4)[0], torch.tensor([False, True, True, True])
NEED_MASKS = {
    "generate": lambda: llada.generate(CAUSAL, TOKENS[None], gen_length=4, block_length=4, steps=4),
    "infill": lambda: llada.infill(CAUSAL, torch.tensor([[3, 39]])),
    "exact_elbo": lambda: exact_elbo(CAUSAL, TOKENS, RESPONSE),
    "log_likelihood": lambda: log_likelihood(CAUSAL, TOKENS, RESPONSE, generator_for(0), n=16),
    "load_model": lambda: load_model("unused", CAUSAL.config),
}


@pytest.mark.parametrize("name", NEED_MASKS)
def test_what_needs_a_masked_model_says_so(name):
    with pytest.raises(ValueError, match="the model is autoregressive .* needs a masked diffusion model"):
        NEED_MASKS[name]()


@pytest.mark.parametrize("which", ["policy", "reference", "adapters"])
def test_vrpo_says_so_before_it_begins(tmp_path, which):
    from peft import LoraConfig

    args = VRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    causal, masked = (tiny_model(causal=kind, dtype=torch.float32, **IDS) for kind in (True, False))
    model, reference = (masked, causal) if which == "reference" else (causal, None)
    adapters = LoraConfig() if which == "adapters" else None
    with pytest.raises(ValueError, match="the model is autoregressive .* needs a masked diffusion model"):
        VRPOTrainer(model, reference, args, train_dataset=rows, processing_class=TOKENIZER, peft_config=adapters)


def test_what_needs_an_autoregressive_model_says_so():
    masked = tiny_model()
    with pytest.raises(ValueError, match="attention is bidirectional, and this needs an autoregressive model"):
        causal_generate(masked, TOKENS[None], gen_length=2)
    with pytest.raises(ValueError, match="attention is bidirectional, and this needs an autoregressive model"):
        causal_log_likelihood(masked, TOKENS[None], RESPONSE[None])
    with pytest.raises(ValueError, match="gen_length=0 must be at least 1"):
        causal_generate(CAUSAL, TOKENS[None], gen_length=0)
    with pytest.raises(ValueError, match="text of 4 tokens does not fit: context less gen_length is 3"):
        causal_generate(CAUSAL, TOKENS[None], gen_length=61)
