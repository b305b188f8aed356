"""Sampling: one denoising loop over a canvas of tokens (LLaDA, arXiv 2502.09992, Alg. 4 and 5, and its released code).

The canvas is the prompt followed by `gen_length` MASKs. It is filled block by block from the left (one block: pure
diffusion; several: semi-autoregressive). Each step predicts every masked position up to the end of the current block
and commits some of them: as many as the step's share of the block's masks, by rank of a confidence score.

Departures from the released code, all of them repairs: MASK is never emitted (`allow_mask=True` restores it), ties
commit the leftmost position (`commit_as_official` says where not), guidance works without an attention mask, and
`confidence_eos_eot_inf` holds for EOS at every temperature.

Shapes: B rows, L canvas positions, N candidate positions, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel

from llada.guidance import Predictor, guided

REMASKING = ("low_confidence", "top_probability", "random")


@dataclass
class SamplerStats:
    """What a call cost: `forwards` is the number of times that the model was run (a guided step is one)."""

    forwards: int = 0


def model_predictor(model: PreTrainedModel, stats: SamplerStats) -> Predictor:
    """The model as a predictor: the head runs at candidates only, and rows without one are left out."""

    def predict(canvas_BL: Tensor, attention_BL: Tensor, at_BL: Tensor) -> Tensor:
        stats.forwards += 1
        rows = at_BL.any(-1)
        mask = None if attention_BL.all() else attention_BL[rows]
        return model(canvas_BL[rows], attention_mask=mask, logits_at=at_BL[rows]).logits

    return predict


@dataclass(frozen=True)
class TokenChoice:
    """Which token each candidate would take, and how confident it is: the settings of one `generate` call."""

    remasking: str
    temperature: float
    forbidden: list[int]  # never emitted, though they keep their probability mass in the confidence
    removed: list[int]  # probability 0 before anything else (`logits_eos_inf`)
    unconfident: list[int]  # emitted with confidence 0 (`confidence_eos_eot_inf`)
    generator: Generator | None

    def __call__(self, logits_NV: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N] and confidences [N] in [0, 1]."""
        logits_NV = without(logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32)), self.removed)
        choice_NV = without(logits_NV, self.forbidden)
        greedy_N = tokens_N = choice_NV.argmax(-1)
        if self.temperature > 0:
            tokens_N = self._perturbed(choice_NV).argmax(-1)
        if self.remasking == "random":
            return tokens_N, torch.rand(len(tokens_N), device=logits_NV.device, generator=self.generator)
        confidence_NV = without(logits_NV, self.unconfident).softmax(-1)
        judged_N = tokens_N if self.remasking == "low_confidence" else greedy_N
        return tokens_N, confidence_NV.gather(-1, judged_N[:, None])[:, 0]

    def _perturbed(self, logits_NV: Tensor) -> Tensor:
        # Gumbel-max in float64: argmax(logit - T log(-log u)) is a draw from softmax(logit / T); in low precision the
        # tail of the noise is cut off and samples lose quality (arXiv 2409.02908).
        noise = torch.rand(logits_NV.shape, dtype=torch.float64, device=logits_NV.device, generator=self.generator)
        return logits_NV.double() - self.temperature * (-noise.log()).log()


def without(logits_NV: Tensor, ids: list[int]) -> Tensor:
    """The logits with probability 0 for these token ids (a copy, or the tensor itself if there are none)."""
    return logits_NV.index_fill(-1, torch.tensor(ids, device=logits_NV.device), -torch.inf) if ids else logits_NV


def step_quotas(masks_B: Tensor, steps: int) -> Tensor:
    """How many tokens each step commits, [B, steps]: an even share, the first steps taking one more of the rest."""
    step_S = torch.arange(steps, device=masks_B.device)
    return masks_B[:, None] // steps + (step_S < masks_B[:, None] % steps)


def commit(canvas_BL: Tensor, at_BL: Tensor, tokens_N: Tensor, confidence_N: Tensor, quota_B: Tensor) -> Tensor:
    """Write each row's `quota_B` most confident candidates into the canvas (ties: leftmost first)."""
    score_BL = torch.full(canvas_BL.shape, -1.0, device=canvas_BL.device, dtype=confidence_N.dtype)
    score_BL = score_BL.masked_scatter(at_BL, confidence_N)
    rank_BL = score_BL.sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    chosen_BL = at_BL & (rank_BL < quota_B[:, None])
    return torch.where(chosen_BL, canvas_BL.masked_scatter(at_BL, tokens_N), canvas_BL)


def commit_as_official(
    canvas_BL: Tensor, at_BL: Tensor, tokens_N: Tensor, confidence_N: Tensor, quota_B: Tensor, pads_B: Tensor
) -> Tensor:
    """`commit` with the official tie order, which is that of `torch.topk` over a row, here without its left padding.

    For `confidence_eos_eot_inf`, where ties are the rule: every EOS has confidence 0, and which comes first decides
    what is written around it.
    """
    score_BL = torch.full(canvas_BL.shape, -torch.inf, device=canvas_BL.device, dtype=confidence_N.dtype)
    score_BL, chosen_BL = score_BL.masked_scatter(at_BL, confidence_N), torch.zeros_like(at_BL)
    for row, (quota, pads) in enumerate(zip(quota_B.tolist(), pads_B.tolist(), strict=True)):
        chosen_BL[row, pads + score_BL[row, pads:].topk(quota).indices] = True
    return torch.where(chosen_BL & at_BL, canvas_BL.masked_scatter(at_BL, tokens_N), canvas_BL)


def finished_rows(response_BL: Tensor, mask_id: int, eos_id: int) -> Tensor:
    """Rows [B] whose first EOS has no MASK before it: their visible text cannot change any more."""
    is_eos, is_mask = response_BL == eos_id, response_BL == mask_id
    return is_eos.any(-1) & ((is_mask.cumsum(-1) == 0) & is_eos).any(-1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    steps: int = 128,
    gen_length: int = 128,
    block_length: int = 128,
    temperature: float = 0.0,
    cfg_scale: float = 0.0,
    remasking: str = "low_confidence",
    logits_eos_inf: bool = False,
    confidence_eos_eot_inf: bool = False,
    eos_token_id: int | None = None,
    eot_token_id: int | None = None,
    stop_at_eos: bool = True,
    allow_mask: bool = False,
    return_stats: bool = False,
    generator: Generator | None = None,
) -> Tensor | tuple[Tensor, SamplerStats]:
    """Fill `gen_length` tokens after each prompt; names and meaning follow the official sampler.

    Args:
        input_ids: [B, P] prompts; prompts of different lengths are padded on the left, with `attention_mask` [B, P].
        steps: denoising steps in all, shared evenly by the gen_length / block_length blocks.
        temperature: 0 is greedy; above it, tokens are drawn from softmax(logits / temperature).
        cfg_scale: guidance scale w of `llada.guidance`.
        remasking: what a step keeps. "low_confidence": the most probable of the drawn tokens, as the papers do, which
            above temperature 0 draws unlikely tokens again until they are likely; "top_probability": the positions
            whose most probable token is most probable, whatever was drawn, so that samples keep the model's diversity
            (the same at temperature 0); "random": random positions.
        logits_eos_inf: EOS is never predicted.
        confidence_eos_eot_inf: EOS and end-of-turn are committed last.
        eos_token_id, eot_token_id: default to the model config's.
        stop_at_eos: stop a row once a finished block holds EOS with no MASK before it, and fill the rest with EOS.
            The text up to EOS is the same as without.
        allow_mask: let the model emit MASK as the official code does.
        return_stats: also return `SamplerStats`.
        generator: source of randomness on the model's device; None uses torch's default.

    Returns:
        [B, P + gen_length] prompt and response ids.

    Raises:
        ValueError: an argument out of range, an empty or right-padded prompt, a prompt that holds MASK, or a canvas
            longer than the model's context. The message names the argument and what is allowed.
    """
    config = model.config
    mask_id = config.mask_token_id
    eos_id = config.eos_token_id if eos_token_id is None else eos_token_id
    eot_id = getattr(config, "eot_token_id", None) if eot_token_id is None else eot_token_id
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    _check_settings(steps, gen_length, block_length, temperature, cfg_scale, remasking)
    _check_prompt(input_ids, attention_mask, mask_id, config.max_sequence_length - gen_length)
    if eos_id is None and (stop_at_eos or logits_eos_inf or confidence_eos_eot_inf):
        raise ValueError("the config has no eos_token_id: pass eos_token_id, or stop_at_eos=False and no eos option")
    if eot_id is None and confidence_eos_eot_inf:
        raise ValueError("confidence_eos_eot_inf needs eot_token_id, which the config does not have: pass it")

    stats = SamplerStats()
    prompt_length, blocks = input_ids.shape[1], gen_length // block_length
    canvas_BL = torch.cat([input_ids, input_ids.new_full((len(input_ids), gen_length), mask_id)], -1)
    attention_BL = torch.cat([attention_mask.bool(), attention_mask.new_ones(len(input_ids), gen_length).bool()], -1)
    position_L = torch.arange(canvas_BL.shape[1], device=canvas_BL.device)
    pads_B = (~attention_BL).sum(-1)
    predict = model_predictor(model, stats)
    if cfg_scale > 0:
        predict = guided(predict, (position_L < prompt_length).expand_as(canvas_BL), cfg_scale, mask_id)
    choose = TokenChoice(
        remasking=remasking,
        temperature=temperature,
        forbidden=[] if allow_mask else [mask_id],
        removed=[eos_id] if logits_eos_inf else [],
        unconfident=[i for i in (eos_id, eot_id) if i is not None] if confidence_eos_eot_inf else [],
        generator=generator,
    )
    finished_B = torch.zeros(len(input_ids), dtype=torch.bool, device=canvas_BL.device)
    for block in range(blocks):
        end = prompt_length + (block + 1) * block_length
        open_BL = (position_L >= prompt_length) & (position_L < end) & ~finished_B[:, None]
        masks_B = (canvas_BL == mask_id)[:, end - block_length : end].sum(-1)
        for quota_B in step_quotas(masks_B, steps // blocks).T:
            at_BL = (canvas_BL == mask_id) & open_BL
            if quota_B.max() == 0 or not at_BL.any():
                continue
            tokens_N, confidence_N = choose(predict(canvas_BL, attention_BL, at_BL))
            decided = (canvas_BL, at_BL, tokens_N, confidence_N, quota_B)
            canvas_BL = commit_as_official(*decided, pads_B) if confidence_eos_eot_inf else commit(*decided)
        if stop_at_eos:
            finished_B = finished_rows(canvas_BL[:, prompt_length:end], mask_id, eos_id)
            if finished_B.all():
                break
    canvas_BL = canvas_BL.masked_fill((canvas_BL == mask_id) & finished_B[:, None], eos_id or 0)
    return (canvas_BL, stats) if return_stats else canvas_BL


def _check_settings(steps, gen_length, block_length, temperature, cfg_scale, remasking) -> None:
    if min(steps, gen_length, block_length) < 1:
        raise ValueError(f"steps={steps}, gen_length={gen_length} and block_length={block_length} must be at least 1")
    if gen_length % block_length:
        down, up = gen_length // block_length * block_length, -(-gen_length // block_length) * block_length
        raise ValueError(
            f"gen_length={gen_length} must be a multiple of block_length={block_length}, such as {down or up} or {up}"
        )
    blocks = gen_length // block_length
    if steps % blocks:
        raise ValueError(
            f"steps={steps} must be a multiple of the number of blocks, gen_length / block_length={blocks}"
        )
    if temperature < 0 or cfg_scale < 0:
        raise ValueError(f"temperature={temperature} and cfg_scale={cfg_scale} must not be negative")
    if remasking not in REMASKING:
        raise ValueError(f"remasking={remasking!r} is unknown: it must be one of {REMASKING}")


def _check_prompt(input_ids: Tensor, attention_mask: Tensor, mask_id: int | None, room: int) -> None:
    if mask_id is None:
        raise ValueError("the model's config has no mask_token_id")
    if input_ids.dim() != 2 or attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)} must be [B, P] alike"
        )
    if input_ids.shape[1] > room:
        raise ValueError(f"a prompt of {input_ids.shape[1]} tokens does not fit: context less gen_length is {room}")
    empty = (attention_mask.sum(-1) == 0).nonzero()[:, 0].tolist()
    if empty or input_ids.shape[1] == 0:
        raise ValueError(f"empty prompt in row {empty[0] if empty else 0}")
    if (attention_mask.long().diff(dim=-1) < 0).any():
        raise ValueError("prompts must be padded on the left (attention_mask rows must be 0...01...1)")
    if ((input_ids == mask_id) & attention_mask.bool()).any():
        raise ValueError(f"a prompt holds the mask token (id {mask_id}): generate fills what follows the prompt only")
