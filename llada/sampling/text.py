"""Answers to prompts, as text."""

from collections.abc import Iterable, Iterator

from torch import Generator, Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llada.data.tokenizer import Prompt, before_eos, render
from llada.denoiser import as_denoiser
from llada.sampling.block_cache import SamplerStats
from llada.sampling.loop import generate
from llada.sampling.settings import SamplerSettings


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Ids of a prompt: text as it is, or messages with an assistant turn opened."""
    text = prompt if isinstance(prompt, str) else render(tokenizer, prompt, open_turn=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def left_padded(tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompts (text or messages), [B, P] each; padding is EOS for a tokenizer without any."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = {"input_ids": [encode(tokenizer, prompt) for prompt in prompts]}
    batch = tokenizer.pad(rows, padding_side="left", return_tensors="pt").to(device)
    return batch["input_ids"], batch["attention_mask"]


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt], settings: SamplerSettings,
    batch_size: int, generator: Generator | None = None, stats: SamplerStats | None = None,
) -> Iterator[str]:  # fmt: skip
    """One answer to each prompt (text or messages), in order, up to EOS: "" where that comes first.

    stats: what the calls cost is added to it.
    """
    eos_id = as_denoiser(model).spec.eos_id
    assert eos_id is not None  # `generate` stops without one
    device, pending = next(model.parameters()).device, list[Prompt]()

    def flush() -> Iterator[str]:
        ids, mask = left_padded(tokenizer, pending, device)
        canvas, cost = generate(model, ids, mask, settings, generator=generator, return_stats=True)
        if stats is not None:
            stats.add(cost)
        answered = [before_eos(row, eos_id) for row in canvas[:, ids.shape[1] :].tolist()]
        yield from tokenizer.batch_decode(answered, skip_special_tokens=True)
        pending.clear()

    for prompt in prompts:
        pending.append(prompt)
        if len(pending) == batch_size:
            yield from flush()
    if pending:
        yield from flush()
