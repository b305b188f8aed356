"""Sampling from an autoregressive model, one token after another, with a key-value cache.

    y_i ~ p(. | x, y_<i)^(1/T), or the most likely token where T = 0

Shapes: B rows, P prompt positions, L = P + G positions, G tokens that are written.
"""

import torch
from torch import Generator, Tensor, nn

from llada.checks import NonNegativeFloat, PositiveInt, check
from llada.denoiser import as_denoiser
from llada.diffusion.causal import check_causal
from llada.kv_cache import KeyValueCache
from llada.sampling.loop import OnStep
from llada.sampling.prompts import check_special_id, check_text, first_row
from llada.sampling.selection import TokenProposal


@torch.no_grad()
def causal_generate(
    model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None, *, gen_length: int = 128,
    temperature: float = 0.0, eos_token_id: int | None = None, generator: Generator | None = None,
    on_step: OnStep | None = None,
) -> Tensor:  # fmt: skip
    """Continue each prompt to the right by `gen_length` tokens, or up to EOS, which then fills the rest.

    Args:
        model: an autoregressive model of `llada.models` (config field `causal`).
        input_ids: [B, P] prompts; prompts of different lengths are padded on the left, with `attention_mask` [B, P].
        temperature: 0 takes the most likely token. The mask token is never written.
        eos_token_id: defaults to the model's; where neither is given, nothing ends an answer.
        generator: source of randomness on the model's device; None uses torch's default.
        on_step: called after every token with the canvas and the confidence of each token that was written, [B, L]
            each, as by `llada.sampling.loop.generate`.

    Returns:
        [B, P + gen_length] prompt and response ids.

    Raises:
        ValueError: the model is no autoregressive one, an argument is out of range, or a prompt is empty, right-padded,
            too long or has an id outside the vocabulary.
        FloatingPointError: the model gives logits that are nan or infinite.
    """
    spec = as_denoiser(model).spec
    check_causal(spec)
    check("gen_length", gen_length, PositiveInt)
    check("temperature", temperature, NonNegativeFloat)
    check_special_id("eos_token_id", eos_token_id, spec)
    eos_id = spec.eos_id if eos_token_id is None else eos_token_id
    real_BP = check_text(input_ids, attention_mask, spec, spec.context - gen_length)
    forbidden = [] if spec.mask_id is None else [spec.mask_id]
    choose = TokenProposal("low_confidence", temperature, forbidden, [], [], generator)
    rows, width = input_ids.shape
    filler = 0 if eos_id is None else eos_id
    canvas_BL = torch.cat([input_ids, input_ids.new_full((rows, gen_length), filler)], -1)
    seen_BL = torch.cat([real_BP, real_BP.new_zeros(rows, gen_length)], -1)
    confidence_BL = torch.zeros(canvas_BL.shape, device=canvas_BL.device)
    done_B = real_BP.new_zeros(rows)
    last_BP = torch.arange(width, device=input_ids.device).expand(rows, -1) == width - 1
    cache = KeyValueCache()
    logits_BV = model(input_ids, attention_mask=real_BP, logits_at=last_BP, kv_cache=cache).logits
    cache.resize(width + gen_length)
    for position in range(width, width + gen_length):
        tokens_B, confidence_B = choose(logits_BV)
        if confidence_B.isnan().any():
            raise FloatingPointError(
                f"row {first_row(confidence_B.isnan())}: the model's logits for position {position} are nan or infinite"
            )
        canvas_BL[:, position] = torch.where(done_B, canvas_BL[:, position], tokens_B)
        confidence_BL[:, position] = confidence_B.masked_fill(done_B, 0)
        done_B = done_B | (tokens_B == eos_id) if eos_id is not None else done_B
        if on_step:
            on_step(canvas_BL, confidence_BL)
        if done_B.all() or position + 1 == width + gen_length:
            break
        seen_BL[:, position] = True
        cache.positions_RQ = torch.full((rows, 1), position, device=input_ids.device)
        step_B1 = canvas_BL[:, position : position + 1]
        every = torch.ones_like(step_B1, dtype=torch.bool)
        logits_BV = model(step_B1, attention_mask=seen_BL, logits_at=every, kv_cache=cache).logits
    return canvas_BL
