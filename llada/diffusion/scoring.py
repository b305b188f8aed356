"""Likelihood of many answers with few forward passes, for questions whose options are compared.

    B(y | x) = sum_M  1 / (l C(L, l))  sum_{i in M} log p(y_i | y without M, x)        (llada.diffusion.likelihood)

An answer of L tokens has 2^L - 1 masks. Where they are no more than the draws that it may have, all are forwarded and B
is exact. Longer answers get groups of draws: dependent within a group, independent between groups, so that the spread
of the groups' means gives the standard error.

Of an autoregressive model, the likelihood of an answer is exact from one row (`llada.diffusion.causal`).

With `lead`, a question's options get groups only as long as it matters: an option whose value is below the best one's
by `lead` standard errors of their difference gets no more draws, and the question ends when the best option leads all
others so. Both orders that benchmarks use count, that of values and that of values divided by `Answer.size`. What is
decided is then the best option; the values of options that were left behind stay rough.

Shapes: S draws of a group, L tokens of an answer, R rows of a forward pass, W columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Annotated

import torch
from torch import Generator, Tensor

from llada.checks import OneOf, PositiveFloat, PositiveInt, check_fields
from llada.denoiser import NOT_SCORED, Denoiser
from llada.diffusion.baseline import leave_one_out
from llada.diffusion.likelihood import mask_id_of, systematic_counts
from llada.diffusion.masking import MaskDraws, corrupt, exact_count_draws, exact_count_masks, timesteps
from llada.diffusion.random_streams import generator_for

FEWEST_GROUPS = 4  # before `lead` ends a question: a standard error from fewer groups is not worth much


@dataclass(frozen=True)
class Answer:
    """An answer to score: its context and its own tokens, the key of its random stream, and what it is divided by.

    Answers with the same key share their draws as far as their lengths allow: the levels, and all if they are as long.
    """

    context: tuple[int, ...]
    tokens: tuple[int, ...]
    key: int
    size: float = 1.0


@dataclass
class Estimate:
    """The ELBO of an answer in nats: the mean of its groups' means [G], from `rows` rows forwarded.

    exact: nothing was drawn, and there is one group.
    """

    groups: list[float] = field(default_factory=list)
    rows: int = 0
    exact: bool = False

    @property
    def value(self) -> float:
        return math.fsum(self.groups) / len(self.groups)

    @property
    def standard_error(self) -> float:
        """Of the value; 0 for an exact one, nan for a single group."""
        if self.exact:
            return 0.0
        return spread(self.groups)


def spread(groups: list[float]) -> float:
    """The standard error of the mean of independent values; nan of a single one."""
    if len(groups) < 2:
        return math.nan
    mean = math.fsum(groups) / len(groups)
    return math.sqrt(math.fsum((each - mean) ** 2 for each in groups) / (len(groups) - 1) / len(groups))


def published_counts(rows: int, length: int, generator: Generator) -> Tensor:
    """The masked counts of LLaDA's released evaluation code: spread from an integer start and rounded, [rows].

    Halves are rounded to even numbers, so that single counts are not uniform where j * length / rows ends in .5. That
    biases the estimate; `systematic_counts` does not.
    """
    start = torch.randint(1, length + 1, (), generator=generator)
    spread_R = torch.linspace(float(start), float(start + (rows - 1) * (length / rows)), rows).round().long()
    return (spread_R - 1) % length + 1


def spread_counts(counts: Callable[[int, int, Generator], Tensor]):
    """A design: masks of the counts that `counts` draws for a group, with the weight L / l."""

    def draw(size: int, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
        count_S = counts(size, length, generator)
        masked_SL = exact_count_masks(count_S, length, generator)
        return masked_SL, masked_SL * (length / count_S.double())[:, None]

    return draw


def leave_one_out_draws(size: int, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A design: complementary masks at mirrored levels with a flat token baseline (`llada.diffusion.baseline`)."""
    level_S = timesteps(size, generator, "mirrored")
    masked_SL, weight_S = exact_count_draws(level_S, length, generator, complementary=True)
    draws = MaskDraws(masked_SL[:, None], (masked_SL * weight_S[:, None])[:, None])
    draws = leave_one_out(draws, torch.ones(1, length, dtype=torch.bool), group=2, prior=0.1)
    return masked_SL, draws.weight_SBL[:, 0]


CONFIDENCE = "confidence"  # no draws: one row in which the whole answer is masked

# Each draws masks and weights [S, L] of a group of S draws of an answer of L tokens.
DESIGNS: dict[str, Callable[[int, int, Generator], tuple[Tensor, Tensor]]] = {
    "published": spread_counts(published_counts),
    "systematic": spread_counts(systematic_counts),
    "loo_complementary": leave_one_out_draws,
}


def every_mask(length: int) -> tuple[Tensor, Tensor]:
    """All 2^L - 1 masks of an answer, and weights [S, L] with which the *mean* over them is the ELBO."""
    code_S = torch.arange(1, 2**length)
    masked_SL = (code_S[:, None] >> torch.arange(length)) & 1 == 1
    counts = masked_SL.sum(-1).tolist()
    weights = [len(code_S) / (count * math.comb(length, count)) for count in counts]
    return masked_SL, masked_SL * torch.tensor(weights, dtype=torch.float64)[:, None]


Row = tuple[Answer, Tensor, Tensor]  # with masks and weights [L] of one draw


@dataclass(frozen=True)
class ScoreSettings:
    """How answers are scored.

    design: of `DESIGNS`, of which all but "published" are unbiased; or "confidence", which is no likelihood: the sum of
        log p(y_i | x) where the whole answer is masked, in one row (how iLLaDA, arXiv 2606.25331, scores options; for
        an answer of one token it is the likelihood). draws: of an answer at most. group: draws that depend on
        each other. lead: standard errors by which an option has to lead before its question ends (see the module);
        None: all draws for every answer.
    batch_size: rows of a forward pass. Neither it nor the order of questions changes masks.

    Raises:
        ValueError: a value is out of range, or `draws` is no multiple of `group`.
    """

    design: Annotated[str, OneOf((*DESIGNS, CONFIDENCE))] = "loo_complementary"
    draws: PositiveInt = 128
    group: PositiveInt = 16
    lead: PositiveFloat | None = None
    batch_size: PositiveInt = 8
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        if self.draws % self.group:
            raise ValueError(f"draws={self.draws} must be a multiple of group={self.group}")


class Scorer:
    """Scores answers under a model; `rows` counts the rows that were forwarded (twice as many with guidance).

    guide: wraps the denoiser for the rows of a forward pass, given which positions [R, W] are no answer
        (`llada.sampling.guidance`).
    """

    def __init__(
        self, denoiser: Denoiser, settings: ScoreSettings, device: torch.device | str = "cpu",
        guide: Callable[[Denoiser, Tensor], Denoiser] | None = None,
    ):  # fmt: skip
        self.denoiser, self.settings, self.device, self.guide, self.rows = denoiser, settings, device, guide, 0
        self.is_causal = denoiser.spec.attention == "causal"

    @torch.no_grad()
    def score(self, questions: Sequence[Sequence[Answer]]) -> list[list[Estimate]]:
        """Estimates of the options of each question.

        Raises:
            ValueError: an answer has no token.
            FloatingPointError: the model gives logits that are nan or infinite.
        """
        found = [[Estimate() for _ in options] for options in questions]
        pairs = list(zip(chain(*questions), chain(*found), strict=True))
        if any(not answer.tokens for answer, _ in pairs):
            raise ValueError("an answer without tokens has no likelihood")
        self.add([pair for pair in pairs if self.masks_without_draws(pair[0]) is not None], exact=True)
        left = [pair for pair in pairs if not pair[1].exact]
        if self.settings.lead is None:
            self.add(left, self.settings.draws // self.settings.group)
            return found
        while left:
            self.add(left)
            left = [
                (answer, estimate)
                for options, estimates in zip(questions, found, strict=True)
                for answer, estimate in self.open(options, estimates)
            ]
        return found

    def masks_without_draws(self, answer: Answer) -> tuple[Tensor, Tensor] | None:
        """Masks and weights [S, L] of an answer that needs no random draws, if it is one."""
        length = len(answer.tokens)
        if self.settings.design == CONFIDENCE or self.is_causal:
            return torch.ones(1, length, dtype=torch.bool), torch.ones(1, length, dtype=torch.float64)
        few = length < 32 and 2**length - 1 <= self.settings.draws
        return every_mask(length) if few and self.settings.design != "published" else None

    def open(self, options: Sequence[Answer], estimates: list[Estimate]) -> list[tuple[Answer, Estimate]]:
        """The options of a question that need more draws: for its decision, or because nothing is compared."""
        may_grow = [
            not each.exact and len(each.groups) < self.settings.draws // self.settings.group for each in estimates
        ]
        needed = [len(options) == 1 or (0 < len(each.groups) < FEWEST_GROUPS) for each in estimates]
        for sizes in ([1.0] * len(options), [answer.size for answer in options]):
            values = [each.value / size for each, size in zip(estimates, sizes, strict=True)]
            best = max(range(len(values)), key=values.__getitem__)
            for other in range(len(values)):
                if other != best and not self.leads(estimates, sizes, best, other):
                    needed[best] = needed[other] = True
        return [
            (answer, estimate)
            for answer, estimate, grows, wanted in zip(options, estimates, may_grow, needed, strict=True)
            if grows and wanted
        ]

    def leads(self, estimates: list[Estimate], sizes: list[float], best: int, other: int) -> bool:
        """Whether an option is ahead of another by `lead` standard errors of their difference.

        Groups with the same number share their draws where options do, so that their differences are what varies.
        """
        assert self.settings.lead is not None
        one, two = ([each / sizes[i] for each in estimates[i].groups] for i in (best, other))
        ahead = math.fsum(one) / len(one) - math.fsum(two) / len(two)
        if not (estimates[best].exact or estimates[other].exact) and len(one) == len(two):
            error = spread([a - b for a, b in zip(one, two, strict=True)])
        else:
            error = math.hypot(*(estimates[i].standard_error / sizes[i] for i in (best, other)))
        return ahead >= self.settings.lead * error  # not for nan, of a single group

    def add(self, pairs: list[tuple[Answer, Estimate]], groups: int = 1, exact: bool = False) -> None:
        """Forward the next groups of draws of answers, or all their masks, and add the means to their estimates."""
        rows: list[Row] = []
        for answer, estimate in pairs:
            fixed = self.masks_without_draws(answer) if exact else None
            drawn = [fixed] if fixed is not None else self.draw(answer, len(estimate.groups), groups)
            estimate.exact, estimate.rows = exact, estimate.rows + sum(len(masked) for masked, _ in drawn)
            for masked_SL, weight_SL in drawn:
                rows += [(answer, masked, weight) for masked, weight in zip(masked_SL, weight_SL, strict=True)]
        values = iter(self.forward(rows))
        for _, estimate in pairs:
            size = estimate.rows if exact else self.settings.group
            for _ in range(1 if exact else groups):
                estimate.groups.append(math.fsum(next(values) for _ in range(size)) / size)

    def draw(self, answer: Answer, first: int, groups: int) -> list[tuple[Tensor, Tensor]]:
        """Masks and weights [S, L] of groups of draws, from the one with the number `first` on."""
        design, length = DESIGNS[self.settings.design], len(answer.tokens)
        streams = (generator_for(self.settings.seed, answer.key, number) for number in range(first, first + groups))
        return [design(self.settings.group, length, stream) for stream in streams]

    def forward(self, rows: list[Row]) -> list[float]:
        """The weighted sum of log-probabilities of each row, in nats, from forward passes of rows of similar length."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index][0].context) - len(rows[index][0].tokens))
        found = [0.0] * len(rows)
        for start in range(0, len(order), self.settings.batch_size):
            chosen = order[start : start + self.settings.batch_size]
            for index, value in zip(chosen, self.values([rows[index] for index in chosen]), strict=True):
                found[index] = value
        if any(map(math.isnan, found)):  # a harness would count it as an answer, right or wrong
            raise FloatingPointError("the likelihood of an answer is nan: the model's logits are nan or infinite")
        self.rows += len(rows) * (1 if self.guide is None else 2)
        return found

    def values(self, rows: list[Row]) -> list[float]:
        tokens_RW, real_RW, answer_RW = (each.to(self.device) for each in laid_out([row[0] for row in rows]))
        masked_RW = torch.zeros_like(answer_RW)
        masked_RW[answer_RW] = torch.cat([masked_L for _, masked_L, _ in rows]).to(self.device)
        noisy_RW, target_RW = tokens_RW, tokens_RW.masked_fill(~masked_RW, NOT_SCORED)
        if not self.is_causal:
            noisy_RW, target_RW = corrupt(tokens_RW, masked_RW, mask_id_of(self.denoiser))
        denoiser = self.denoiser if self.guide is None else self.guide(self.denoiser, ~answer_RW)
        log_prob_RW = denoiser.log_probs(noisy_RW, target_RW, None if real_RW.all() else real_RW.long())
        parts = log_prob_RW[answer_RW].double().cpu().split([len(answer.tokens) for answer, _, _ in rows])
        return [float(part_L @ weight_L) for part_L, (_, _, weight_L) in zip(parts, rows, strict=True)]


def laid_out(answers: Sequence[Answer]) -> tuple[Tensor, Tensor, Tensor]:
    """Contexts followed by answers as token ids, with 0 behind; where tokens are; where answers are: [R, W] each."""
    width = max(len(answer.context) + len(answer.tokens) for answer in answers)
    tokens_RW = torch.zeros(len(answers), width, dtype=torch.long)
    real_RW, answer_RW = (torch.zeros(len(answers), width, dtype=torch.bool) for _ in range(2))
    for row, answer in enumerate(answers):
        first, end = len(answer.context), len(answer.context) + len(answer.tokens)
        tokens_RW[row, :end] = torch.tensor(answer.context + answer.tokens)
        real_RW[row, :end], answer_RW[row, first:end] = True, True
    return tokens_RW, real_RW, answer_RW
