"""Whether a model would write an answer by itself: the greedy check behind `acc` of tasks such as LAMBADA.

LLaDA (arXiv 2502.09992; `suffix_greedy_prediction` of its evaluation code) masks the whole answer, and commits in each
step the most probable token of the position at which it is most probable. An autoregressive model writes from left to
right.

Shapes: R rows of a forward pass, W columns, N masked positions, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from llada.denoiser import Denoiser, Request
from llada.diffusion.likelihood import mask_id_of
from llada.diffusion.scoring import Answer, laid_out
from llada.sampling.selection import TokenProposal

Guide = Callable[[Denoiser, Tensor], Denoiser]


@torch.no_grad()
def is_greedy(
    denoiser: Denoiser, answers: Sequence[Answer], batch_size: int, device: torch.device | str = "cpu",
    guide: Guide | None = None,
) -> list[bool]:  # fmt: skip
    """For each answer, whether greedy sampling with one token a step writes it.

    An answer leaves the batch at its first token that is another one, so that most cost few forward passes.
    """
    if denoiser.spec.attention == "causal":
        batches = [answers[start : start + batch_size] for start in range(0, len(answers), batch_size)]
        return [each for batch in batches for each in most_likely_throughout(denoiser, batch, device)]
    order = sorted(range(len(answers)), key=lambda index: -len(answers[index].context) - len(answers[index].tokens))
    found = [False] * len(answers)
    left: dict[int, list[int | None]] = {
        index: list(answers[index].tokens) for index in order
    }  # masked positions hold their token, others None
    waiting = list(order)
    while waiting:
        chosen, waiting = waiting[:batch_size], waiting[batch_size:]
        again = []
        for index, position, token in zip(
            chosen, *most_confident(denoiser, [answers[i] for i in chosen], [left[i] for i in chosen], device, guide),
            strict=True,
        ):  # fmt: skip
            if left[index][position] != token:
                continue
            left[index][position] = None
            if all(each is None for each in left[index]):
                found[index] = True
            else:
                again.append(index)
        waiting = again + waiting
    return found


def most_likely_throughout(denoiser: Denoiser, answers: Sequence[Answer], device) -> list[bool]:
    """Whether each token of an answer is the most likely next one of an autoregressive model, R values."""
    tokens_RW, real_RW, answer_RW = (each.to(device) for each in laid_out(answers))
    logits_NV = denoiser.logits(Request(tokens_RW, real_RW, answer_RW))
    if denoiser.spec.mask_id is not None:
        logits_NV[:, denoiser.spec.mask_id] = -torch.inf  # as in sampling
    is_best_N = logits_NV.argmax(-1) == tokens_RW[answer_RW]
    return [bool(part.all()) for part in is_best_N.split([len(answer.tokens) for answer in answers])]


def most_confident(denoiser, answers, left, device, guide) -> tuple[list[int], list[int]]:
    """The position within each answer that is most probable among its masked ones, and the token there, R each."""
    mask_id = mask_id_of(denoiser)
    tokens_RW, real_RW, answer_RW = (each.to(device) for each in laid_out(answers))
    masked_RW = torch.zeros_like(answer_RW)
    masked_RW[answer_RW] = torch.tensor([each is not None for missing in left for each in missing], device=device)
    guided = denoiser if guide is None else guide(denoiser, ~answer_RW)
    logits_NV = guided.logits(Request(tokens_RW.masked_fill(masked_RW, mask_id), real_RW, masked_RW))
    propose = TokenProposal("low_confidence", 0.0, forbidden=[mask_id], removed=[], unconfident=[], generator=None)
    token_N, confidence_N = propose(logits_NV)
    confidence_RW = confidence_N.new_full(masked_RW.shape, -1.0).masked_scatter(masked_RW, confidence_N)
    column_R = confidence_RW.argmax(-1)
    token_R = torch.zeros_like(tokens_RW).masked_scatter(masked_RW, token_N).gather(-1, column_R[:, None])[:, 0]
    contexts = [len(answer.context) for answer in answers]
    return [column - first for column, first in zip(column_R.tolist(), contexts, strict=True)], token_R.tolist()
