"""The contract with a model: everything runs on a module that is not ours, and shifted logits change nothing."""

from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_model
from datasets import Dataset
from test_sft import IDS, TOKENIZER
from test_vrpo_trainer import PAIRS
from torch import nn

import llada
from llada.denoiser import NOT_SCORED, DenoiserSpec, as_denoiser
from llada.diffusion.likelihood import elbo_draws, exact_elbo, log_likelihood
from llada.diffusion.random_streams import generator_for
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.estimators.designs import design, draw_for_pairs

MASK, EOS = IDS["mask_token_id"], IDS["eos_token_id"]
VOCABULARY, LENGTH = IDS["vocab_size"], 64


class TableModel(nn.Module):
    """Logits from two tables: one row for the position, and one for each token that is visible in the sequence.

    shifted: the same logits, given out one position early, as a model adapted from an autoregressive one does.
    """

    def __init__(self, shifted: bool):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.position = nn.Parameter(torch.randn(LENGTH, VOCABULARY, generator=generator, dtype=torch.float64))
        self.visible = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator, dtype=torch.float64))
        self.shifted = shifted

    @property
    def denoiser_spec(self) -> DenoiserSpec:
        return DenoiserSpec(MASK, LENGTH, VOCABULARY, eos_id=EOS, pad_id=EOS, shifted=self.shifted)

    def forward(self, input_ids, attention_mask=None, target_ids=None, logits_at=None):
        real_BL = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weight_BL = ((input_ids != MASK) * real_BL).to(self.visible)
        context_BV = (weight_BL[..., None] * self.visible[input_ids]).sum(1) / weight_BL.sum(-1, keepdim=True).clamp(1)
        place_BL = (real_BL.cumsum(-1) - 1).clamp(min=0)  # left padding does not count
        logits_BLV = self.position[place_BL] + context_BV[:, None]
        logits_BLV = logits_BLV.roll(-1, 1) if self.shifted else logits_BLV
        if logits_at is not None:
            return SimpleNamespace(logits=logits_BLV[logits_at])
        picked_BL = logits_BLV.log_softmax(-1).gather(-1, target_ids.clamp(min=0)[..., None])[..., 0]
        return SimpleNamespace(log_probs=torch.where(target_ids == NOT_SCORED, 0.0, picked_BL))


PLAIN, SHIFTED = TableModel(False), TableModel(True)
PROMPTS = torch.tensor([[EOS, 5, 6], [7, 8, 9]])  # the first one is padded
REAL = torch.tensor([[0, 1, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    "settings",
    [{}, {"cfg_scale": 1.0}, {"threshold": 0.02}, {"temperature": 1.0, "remasking": "top_probability"}, {"grow": True}],
    ids=str,
)
def test_the_sampler_runs_on_any_model(settings):
    """Token for token what a loop over logits by hand writes (greedy), and the same from shifted logits."""
    found = [
        llada.generate(
            model, PROMPTS, REAL, gen_length=8, block_length=4, steps=8, stop_at_eos=False,
            generator=torch.Generator().manual_seed(1), **settings,
        )
        for model in (PLAIN, SHIFTED)
    ]  # fmt: skip
    assert torch.equal(found[0], found[1])
    assert (found[0][:, 3:] != MASK).all()
    if not settings:
        canvas = torch.cat([PROMPTS[1:], torch.full((1, 8), MASK)], -1)
        for start in (3, 7):
            for _ in range(4):
                logits = PLAIN(canvas, logits_at=canvas == MASK).logits
                _, token = logits.index_fill(-1, torch.tensor([MASK]), -torch.inf).max(-1)
                confidence = logits.softmax(-1).gather(-1, token[:, None])[:, 0]
                index = (canvas[0] == MASK).nonzero()[:, 0]
                best = confidence.masked_fill(index >= start + 4, -1).argmax()
                canvas[0, index[best]] = token[best]
        assert torch.equal(found[0][1:], canvas)


def test_what_a_model_does_not_have_is_refused():
    with pytest.raises(ValueError, match="cache='dual' needs a model with a key-value cache"):
        llada.generate(PLAIN, PROMPTS, REAL, gen_length=8, block_length=8, steps=8, cache="dual")
    with pytest.raises(ValueError, match="the first token of a row cannot be predicted"):
        llada.infill(SHIFTED, torch.tensor([[MASK, 5]]))
    with pytest.raises(TypeError, match="Linear has no denoiser_spec"):
        as_denoiser(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="attention='sliding' is unknown"):
        DenoiserSpec(1, 2, 3, attention="sliding")


def test_likelihoods_of_shifted_logits_are_the_same():
    tokens, response = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([False, False, True, True, True])
    exact = [exact_elbo(as_denoiser(model), tokens, response).item() for model in (PLAIN, SHIFTED)]
    assert exact[0] == pytest.approx(exact[1], abs=1e-12)
    estimates = [
        log_likelihood(as_denoiser(model), tokens, response, generator_for(0), n=256)[0] for model in (PLAIN, SHIFTED)
    ]
    assert estimates[0] == pytest.approx(estimates[1], abs=1e-12)
    assert estimates[0] == pytest.approx(exact[0], rel=0.05)


@pytest.mark.parametrize("name", ["vrpo", "loo_complementary", "mirror"])
def test_estimators_of_shifted_logits_are_the_same(name):
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10], [5, 6, 10, 9, 8, 7]])
    response = (torch.arange(6) >= 2).expand_as(tokens)
    draws, _ = draw_for_pairs(design(name, n_t=4), response, [3], 0, 0)
    found = [elbo_draws(as_denoiser(model), tokens, draws) for model in (PLAIN, SHIFTED)]
    assert (found[0] - found[1]).abs().max() < 1e-12


def stepped(trainer_class, folder, model: TableModel) -> TableModel:
    """The model after one optimizer step."""
    common = dict(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=1, use_cpu=True,
        learning_rate=1e-2, warmup_steps=0, report_to="none", save_strategy="no", disable_tqdm=True, max_length=LENGTH,
    )  # fmt: skip
    if trainer_class is VRPOTrainer:
        args, rows = VRPOConfig(**common, n_t=2), PAIRS[:4]
    else:
        args = MaskedDiffusionConfig(**common)
        rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in PAIRS[:4]]
    run = trainer_class(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER)
    run.train()
    return run.model


@pytest.mark.parametrize("trainer_class", [MaskedDiffusionTrainer, VRPOTrainer])
def test_a_step_of_training_moves_any_model(trainer_class, tmp_path):
    """Parameters move, and those of the shifted model to the same values."""
    plain, shifted = (stepped(trainer_class, tmp_path, TableModel(shift)) for shift in (False, True))
    assert (plain.visible - PLAIN.visible).abs().max() > 1e-3
    for a, b in zip(plain.parameters(), shifted.parameters(), strict=True):
        assert (a - b).abs().max() < 1e-9


class ShiftedCached(nn.Module):
    """A model of ours whose logits are given out one position early."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.denoiser_spec = DenoiserSpec(39, 64, 40, eos_id=1, shifted=True, kv_cache=True)

    def forward(self, input_ids, attention_mask=None, logits_at=None, kv_cache=None):
        at_BQ = torch.cat([torch.zeros_like(logits_at[:, :1]), logits_at[:, :-1]], -1)
        return self.model(input_ids, attention_mask=attention_mask, logits_at=at_BQ, kv_cache=kv_cache)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_block_cache_forwards_the_position_before_a_shifted_block(cache):
    """Refreshed at every step it is no cache; and a block's first token is predicted although its own block is not."""
    model = ShiftedCached(tiny_model(dtype=torch.float32))
    settings = dict(gen_length=8, block_length=4, steps=8, stop_at_eos=False, return_stats=True)
    plain, _ = llada.generate(model, torch.tensor([[5, 6, 7]]), **settings)
    refreshed, _ = llada.generate(model, torch.tensor([[5, 6, 7]]), cache=cache, refresh_every=1, **settings)
    assert torch.equal(plain, refreshed)
    _, stats = llada.generate(model, torch.tensor([[5, 6, 7]]), cache=cache, **settings)
    later = {"dual": 5, "prefix": 9 + 5}[cache]  # positions of a later step: one more than the block has
    expected = 2 * 11 + (2 * 3 * later if cache == "dual" else 3 * later)
    assert stats.query_tokens == expected
