"""Sampling: one denoising loop over a canvas of tokens (LLaDA, arXiv 2502.09992, Alg. 4 and 5, and its released code).

The canvas is the prompt followed by `gen_length` MASKs, or any text with MASKs in it (`infill`). It is filled block by
block from the left (one block: pure diffusion; several: semi-autoregressive). Each step predicts every masked position
up to the end of the current block and commits some of them (`selection`). Rows of a batch proceed independently: a row
that has finished a block enters the next one, and a row that is complete leaves the batch.

Differences from LLaDA's released code, all of them fixes: MASK is never emitted (`allow_mask=True` allows it), ties
commit the leftmost position (except in `select_top_k_official`), guidance works without an attention mask, and
`confidence_eos_eot_inf` applies to EOS at every temperature.

Shapes: B rows, L canvas positions, N candidate positions.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor, nn

from llada.denoiser import Denoiser, Request, as_denoiser
from llada.diffusion.likelihood import mask_id_of
from llada.sampling.block_cache import CachedDenoiser, CountedDenoiser, SamplerStats
from llada.sampling.guidance import GuidedDenoiser
from llada.sampling.prompts import check_special_id, check_text, first_row
from llada.sampling.selection import (
    TokenProposal,
    answer_complete,
    confidence_on_canvas,
    select_by_factor,
    select_by_threshold,
    select_top_k,
    select_top_k_official,
    tokens_per_step,
)
from llada.sampling.settings import SamplerSettings


@dataclass
class Row:
    """The state of a row: its current block [start, end), and how many tokens each remaining step of it commits."""

    row_id: int
    begin: int  # first position that may be filled
    steps: int  # number of steps for each block that contains a MASK
    start: int = 0
    end: int = 0
    quotas: list[int] = field(default_factory=list)
    enters_block: bool = True


OnStep = Callable[[Tensor, Tensor], None]  # canvas and confidences, [B, L] each


@torch.no_grad()
def generate(
    model: nn.Module | Denoiser, input_ids: Tensor, attention_mask: Tensor | None = None,
    settings: SamplerSettings | None = None, *, eos_token_id: int | None = None, eot_token_id: int | None = None,
    generator: Generator | None = None, on_step: OnStep | None = None, return_stats: bool = False, **changes,
) -> Tensor | tuple[Tensor, SamplerStats]:  # fmt: skip
    """Fill `gen_length` tokens after each prompt.

    Args:
        model: a denoiser, or a module that `llada.denoiser.as_denoiser` accepts.
        input_ids: [B, P] prompts; prompts of different lengths are padded on the left, with `attention_mask` [B, P].
        settings, changes: `SamplerSettings`, and single settings by name (`steps=64`) that override them.
        eos_token_id, eot_token_id: default to the model's.
        generator: source of randomness on the model's device; None uses torch's default.
        on_step: called after every step, and after the rest of an answer was filled with EOS, with the canvas [B, L]
            and the confidence of each committed token [B, L] (0 elsewhere). Both change later: copy to keep.
        return_stats: also return `SamplerStats`.

    Returns:
        [B, P + gen_length] prompt and response ids.

    Raises:
        ValueError: an argument is out of range, a prompt is empty, right-padded or contains MASK or an id outside the
            vocabulary, or the canvas is longer than the model's context. The message names the argument or the row.
        FloatingPointError: the model gives a logit that is nan or infinity; the message names row and position.
    """
    settings = replace(settings or SamplerSettings(), **changes)
    settings.check_blocks()
    denoiser, length = as_denoiser(model), settings.gen_length
    mask_id = mask_id_of(denoiser)
    real_BP = check_text(input_ids, attention_mask, denoiser.spec, denoiser.spec.context - length)
    masked_B = ((input_ids == mask_id) & real_BP).any(-1)
    if masked_B.any():
        raise ValueError(
            f"row {first_row(masked_B)}: a prompt holds the mask token (id {mask_id}): generate fills what follows the "
            "prompt only"
        )
    width = input_ids.shape[1]
    canvas_BL = torch.cat([input_ids, input_ids.new_full((len(input_ids), length), mask_id)], -1)
    real_BL = torch.cat([real_BP, real_BP.new_ones(len(input_ids), length)], -1)
    loop = DenoisingLoop(denoiser, settings, eos_token_id, eot_token_id, generator, on_step)
    canvas_BL = loop.fill(canvas_BL, real_BL, [width] * len(input_ids))
    return (canvas_BL, loop.stats) if return_stats else canvas_BL


@torch.no_grad()
def infill(
    model: nn.Module | Denoiser, input_ids: Tensor, attention_mask: Tensor | None = None,
    settings: SamplerSettings | None = None, *, eos_token_id: int | None = None, eot_token_id: int | None = None,
    generator: Generator | None = None, on_step: OnStep | None = None, return_stats: bool = False, **changes,
) -> Tensor | tuple[Tensor, SamplerStats]:  # fmt: skip
    """Fill the MASKs of a text at any position, and keep all other tokens.

    Blocks of `block_length` begin at a row's first MASK, `gen_length` is not used, and `steps` are shared by the blocks
    that contain a MASK. If all MASKs are at the end, the result is that of `generate` with `stop_at_eos=False`.

    Args:
        input_ids: [B, L] texts that contain the mask token, padded on the left, with `attention_mask` [B, L].
        All others: see `generate`.

    Raises:
        ValueError, FloatingPointError: a row has no MASK; all others: see `generate`.
    """
    denoiser = as_denoiser(model)
    mask_id = mask_id_of(denoiser)
    real_BL = check_text(input_ids, attention_mask, denoiser.spec, denoiser.spec.context)
    changes |= {"stop_at_eos": False, "gen_length": input_ids.shape[1]}
    settings = replace(settings or SamplerSettings(), **changes)
    is_mask_BL = (input_ids == mask_id) & real_BL
    if not is_mask_BL.any(-1).all():
        raise ValueError(f"row {first_row(~is_mask_BL.any(-1))} has no mask token (id {mask_id}) to fill")
    loop = DenoisingLoop(denoiser, settings, eos_token_id, eot_token_id, generator, on_step)
    canvas_BL = loop.fill(input_ids.clone(), real_BL, is_mask_BL.long().argmax(-1).tolist())
    return (canvas_BL, loop.stats) if return_stats else canvas_BL


class DenoisingLoop:
    """One call of the sampler: the denoiser with its cache and guidance, the selection rule, and the loop over steps.

    State: canvas_BL, the tokens; real_BL, False on padding; is_mask_BL (on the CPU), the MASKs that are left;
    confidence_BL, the confidence of each committed token, 0 elsewhere.
    """

    def __init__(
        self, denoiser: Denoiser, settings: SamplerSettings, eos_id, eot_id, generator, on_step: OnStep | None
    ):
        spec, s = denoiser.spec, settings
        self.settings, self.on_step, self.stats, self.mask_id = s, on_step, SamplerStats(), mask_id_of(denoiser)
        self.eos_id = spec.eos_id if eos_id is None else eos_id
        eot_id = spec.eot_id if eot_id is None else eot_id
        for name, value in (("eos_token_id", self.eos_id), ("eot_token_id", eot_id)):
            check_special_id(name, value, spec)
        if self.eos_id is None and (s.stop_at_eos or s.logits_eos_inf or s.confidence_eos_eot_inf):
            raise ValueError(
                "the config has no eos_token_id: pass eos_token_id, or stop_at_eos=False and no eos option"
            )
        if eot_id is None and s.confidence_eos_eot_inf:
            raise ValueError("confidence_eos_eot_inf needs eot_token_id, which the config does not have: pass it")
        self.denoiser: Denoiser = CountedDenoiser(denoiser, self.stats)
        if s.cache:
            self.denoiser = CachedDenoiser(self.denoiser, s.cache, s.refresh_every)
        self.choose = TokenProposal(
            remasking=s.remasking,
            temperature=s.temperature,
            forbidden=[] if s.allow_mask else [self.mask_id],
            removed=[i for i in (self.eos_id,) if i is not None and s.logits_eos_inf],
            unconfident=[i for i in (self.eos_id, eot_id) if i is not None] if s.confidence_eos_eot_inf else [],
            generator=generator,
        )

    def fill(self, canvas_BL: Tensor, real_BL: Tensor, begins: list[int]) -> Tensor:
        """Fill the MASKs of each row from its position in `begins` on, and return the canvas [B, L]."""
        self.canvas_BL, self.real_BL = canvas_BL, real_BL
        self.is_mask_BL = self.masks_left()
        self.confidence_BL = torch.zeros(canvas_BL.shape, device=canvas_BL.device)
        self.padding_B = (~real_BL).sum(-1)
        if self.settings.cfg_scale > 0:  # its unconditional half masks all tokens given at the start
            self.denoiser = GuidedDenoiser(self.denoiser, canvas_BL != self.mask_id, self.settings.cfg_scale)
        rows = [self.first_block(row_id, begin) for row_id, begin in enumerate(begins)]
        while rows := [row for row in rows if self.advance(row)]:
            request = self.request(rows)
            self.commit(request, rows, *self.choose(self.denoiser.logits(request)))
            if self.on_step:
                self.on_step(self.canvas_BL, self.confidence_BL)
            self.is_mask_BL = self.masks_left()
            for row in rows:
                row.enters_block = False
        if self.on_step and not torch.equal(self.is_mask_BL, self.masks_left()):
            self.on_step(self.canvas_BL, self.confidence_BL)  # EOS has filled the rest of the last answers
        return self.canvas_BL

    def masks_left(self) -> Tensor:
        return ((self.canvas_BL == self.mask_id) & self.real_BL).cpu()

    def first_block(self, row_id: int, begin: int) -> Row:
        """The state of a row in its first block; the steps are shared by the blocks that contain a MASK."""
        blocks = sum(bool(block.any()) for block in self.is_mask_BL[row_id, begin:].split(self.settings.block_length))
        row = Row(row_id, begin, max(1, self.settings.steps // blocks))
        self.enter(row, begin)
        return row

    def enter(self, row: Row, start: int) -> None:
        """Move a row to the beginning of a block and set how many tokens each of its steps commits."""
        is_mask_L = self.is_mask_BL[row.row_id]
        row.start, row.end, row.enters_block = start, min(start + self.settings.block_length, len(is_mask_L)), True
        row.quotas = [q for q in tokens_per_step(int(is_mask_L[row.start : row.end].sum()), row.steps) if q]

    def advance(self, row: Row) -> bool:
        """Move a row past its finished blocks. False: it is complete; with `stop_at_eos`, EOS fills the rest."""
        canvas_L, is_mask_L = self.canvas_BL[row.row_id], self.is_mask_BL[row.row_id]
        while True:
            masks = int(is_mask_L[row.start : row.end].sum())
            if masks and (row.quotas or not self.settings.fixed_steps):
                return True
            answer_L = canvas_L[row.begin : row.end]
            if (
                self.settings.stop_at_eos
                and self.eos_id is not None
                and answer_complete(answer_L, self.mask_id, self.eos_id)
            ):
                canvas_L[row.begin :].masked_fill_(canvas_L[row.begin :] == self.mask_id, self.eos_id)
                return False
            if row.end >= len(is_mask_L):
                return False
            self.enter(row, row.end)

    def request(self, rows: list[Row]) -> Request:
        """This step's request to the denoiser: logits at every MASK up to the end of each row's block."""
        row_ids, device = [row.row_id for row in rows], self.canvas_BL.device
        seen = max(row.end for row in rows) if self.settings.grow else self.canvas_BL.shape[1]
        position_L, ends_B = torch.arange(seen), torch.tensor([row.end for row in rows])
        before_end_BL = position_L < ends_B[:, None]
        at_BL = self.is_mask_BL[row_ids, :seen] & before_end_BL
        if self.settings.cache:
            at_BL &= position_L >= torch.tensor([row.start for row in rows])[:, None]
        attention_BL = self.real_BL[row_ids, :seen]
        if self.settings.grow:
            attention_BL = attention_BL & before_end_BL.to(device)
        return Request(
            self.canvas_BL[row_ids, :seen], attention_BL, at_BL.to(device), tuple(row_ids),
            tuple(row.start for row in rows), tuple(row.end for row in rows), tuple(row.enters_block for row in rows),
        )  # fmt: skip

    def commit(self, request: Request, rows: list[Row], tokens_N: Tensor, confidence_N: Tensor) -> None:
        """Write the candidates that the selection rule chooses to the canvas.

        Raises:
            FloatingPointError: a confidence is nan. Nothing is written then.
        """
        row_ids, at_BL, seen = list(request.row_ids), request.at_BQ, request.at_BQ.shape[1]
        chosen_BL = self.select(at_BL, confidence_N, rows)
        # Both counts come to the CPU together: a step waits for the device no more often than without the check.
        chosen, wrong = torch.stack([chosen_BL.sum(), confidence_N.isnan().sum()]).tolist()
        if wrong:
            raise FloatingPointError(self.wrong_logits(request, rows, confidence_N))
        self.stats.tokens += chosen
        proposed_BL = request.tokens_BQ.masked_scatter(at_BL, tokens_N)
        self.canvas_BL[row_ids, :seen] = torch.where(chosen_BL, proposed_BL, request.tokens_BQ)
        if self.on_step:
            self.confidence_BL[row_ids, :seen] = torch.where(
                chosen_BL, confidence_on_canvas(at_BL, confidence_N).float(), self.confidence_BL[row_ids, :seen]
            )

    def wrong_logits(self, request: Request, rows: list[Row], confidence_N: Tensor) -> str:
        """The message on logits that are nan or infinity: where the first of them are, and what to try."""
        index, position = request.at_BQ.nonzero()[confidence_N.isnan()][0].tolist()
        row = rows[index]
        return (
            f"row {row.row_id}: the model's logits at position {position}, {position - row.begin} tokens after the "
            f"first that is filled, are nan or infinity (forward pass {self.stats.forwards}, block of positions "
            f"{row.start} to {row.end - 1}): its weights may be damaged, or its dtype too narrow (float16 overflows; "
            "bfloat16 and float32 do not)"
        )

    def select(self, at_BL: Tensor, confidence_N: Tensor, rows: list[Row]) -> Tensor:
        """The candidates that are committed, [B, L] bool."""
        settings = self.settings
        if settings.threshold is not None:
            return select_by_threshold(at_BL, confidence_N, settings.threshold)
        if settings.factor is not None:
            return select_by_factor(at_BL, confidence_N, settings.factor)
        quota_B = torch.tensor([row.quotas.pop(0) for row in rows], device=at_BL.device)
        if settings.confidence_eos_eot_inf:
            return select_top_k_official(at_BL, confidence_N, quota_B, self.padding_B[[row.row_id for row in rows]])
        return select_top_k(at_BL, confidence_N, quota_B)
