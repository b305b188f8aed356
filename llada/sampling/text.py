"""Sampling from text to text: encode prompts, generate, decode answers."""

from collections.abc import Iterable, Iterator

import torch
from torch import Generator, Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llada.data.encoding import encode_prompt
from llada.data.tokenizer import Prompt, special_ids
from llada.data.turns import speaks_in_turns
from llada.denoiser import DenoiserSpec, as_denoiser
from llada.sampling.block_cache import SamplerStats
from llada.sampling.loop import generate
from llada.sampling.settings import SamplerSettings


def left_padded(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], pad_id: int | None, device,
    allow_special_tokens: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Token ids and attention mask of prompts (text or messages), [B, P] each, padded on the left.

    pad_id: what pads where the tokenizer has no padding token, such as EOS. allow_special_tokens: see
        `llada.data.encoding.encode_pair`.

    Raises:
        PairError: see `llada.data.encoding.encode_prompt`.
    """
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else pad_id
    rows = [
        torch.tensor(encode_prompt(tokenizer, prompt, None, allow_special_tokens), dtype=torch.long)
        for prompt in prompts
    ]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad_id or 0, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return ids.to(device), mask.to(device)


def ends_of(tokenizer: PreTrainedTokenizerBase, spec: DenoiserSpec) -> set[int]:
    """The ids that end an answer: EOS, and the end of a turn if the model was trained on turns.

    A model writes EOS after the end of its turn. If it writes something else there, that is no part of its answer.
    """
    ids = special_ids(tokenizer, spec)
    return {ids.eos} | ({ids.eot} if ids.eot is not None and speaks_in_turns(tokenizer) else set())


def before_end(ids: list[int], ends: set[int]) -> list[int]:
    """The tokens before the first of the ids in `ends`; all tokens if there is none of them."""
    return ids[: next((index for index, token in enumerate(ids) if token in ends), len(ids))]


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt], settings: SamplerSettings,
    batch_size: int, generator: Generator | None = None, stats: SamplerStats | None = None,
    allow_special_tokens: bool = False,
) -> Iterator[str]:  # fmt: skip
    """Yield one answer to each prompt (text or messages), in order, cut where it ends (`ends_of`; possibly empty).

    Args:
        batch_size: number of prompts sampled together.
        stats: the costs of the calls are added to it.
        allow_special_tokens: see `llada.data.encoding.encode_pair`.

    Raises:
        ValueError: `batch_size` is below 1, or a prompt is invalid (`encode_prompt`, `generate`).
        FloatingPointError: see `generate`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    spec = as_denoiser(model).spec
    ends = ends_of(tokenizer, spec)
    device, pending = next(model.parameters()).device, list[Prompt]()

    def flush() -> Iterator[str]:
        ids, mask = left_padded(tokenizer, pending, spec.eos_id, device, allow_special_tokens)
        canvas, cost = generate(model, ids, mask, settings, generator=generator, return_stats=True)
        if stats is not None:
            stats.add(cost)
        answered = [before_end(row, ends) for row in canvas[:, ids.shape[1] :].tolist()]
        yield from tokenizer.batch_decode(answered, skip_special_tokens=True)
        pending.clear()

    for prompt in prompts:
        pending.append(prompt)
        if len(pending) == batch_size:
            yield from flush()
    if pending:
        yield from flush()
