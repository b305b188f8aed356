"""Answers to the harness's `generate_until` requests.

Shapes: B rows, P positions of prompts.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llada.cli.arguments import with_length
from llada.denoiser import as_denoiser
from llada.diffusion.random_streams import generator_for
from llada.harness.requests import Encoded, place, stream_key
from llada.sampling.block_cache import SamplerStats
from llada.sampling.left_to_right import causal_generate
from llada.sampling.loop import generate
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import before_end, ends_of

READ = ("do_sample", "until", "max_gen_toks", "temperature")  # of generation_kwargs, by `wanted`
OF_SAMPLING = ("top_p", "top_k", "min_p")  # which the sampler does not have; without do_sample they mean nothing


@dataclass(frozen=True)
class Wanted:
    """A prompt, the settings by which it is answered, and the texts before which its answer ends."""

    prompt: Encoded
    settings: SamplerSettings
    until: tuple[str, ...]


def wanted(request: Any, prompt: Encoded, settings: SamplerSettings, own_length: bool) -> Wanted:
    """What a request asks for.

    Args:
        settings: of the model and its options; own_length: whether they have a length of their own, from a preset, the
            model's files or an option. If not, the task's `max_gen_toks` is the length of the answer.

    Raises:
        ValueError: the task samples with settings that this sampler does not have.
    """
    asked = dict(request.args[1])
    until = asked.get("until") or []
    sampled = asked.get("do_sample", False)
    unknown = sorted(set(asked) - {*READ, *(() if sampled else OF_SAMPLING)})
    if unknown:
        raise ValueError(f"{place(request)} asks for {unknown} in generation_kwargs; known are {list(READ)}")
    if sampled and "temperature" in asked:
        settings = replace(settings, temperature=float(asked["temperature"]))
    if not own_length and "max_gen_toks" in asked:
        settings = replace(settings, **with_length(settings, int(asked["max_gen_toks"])))
    return Wanted(prompt, settings, tuple([until] if isinstance(until, str) else until))


def cut(text: str, until: Sequence[str]) -> str:
    """The text before the first place at which one of the stop texts begins."""
    ends = [place for place in (text.find(stop) for stop in until if stop) if place >= 0]
    return text[: min(ends)] if ends else text


def generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requests: Sequence[Wanted], batch_size: int, seed: int,
    stats: SamplerStats,
) -> Iterator[tuple[int, str]]:  # fmt: skip
    """Yield the number of each request and its answer, longest prompts first.

    Of an autoregressive model, only `gen_length` and `temperature` of the settings count. Answers without randomness
    are sampled together. Others, at a temperature above 0 or with random remasking, are sampled alone, each with a
    random stream of its own, so that it does not depend on what runs beside it. A request that is there several times,
    as by a task's `repeats`, has as many streams.
    """
    spec, device = as_denoiser(model).spec, next(model.parameters()).device
    ends = ends_of(tokenizer, spec)
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    asked_before: Counter[tuple] = Counter()
    order = sorted(range(len(requests)), key=lambda number: -len(requests[number].prompt.context))
    kinds: dict[str, list[int]] = {}
    for number in order:
        kinds.setdefault(repr(requests[number].settings), []).append(number)
    for numbers in kinds.values():
        settings = requests[numbers[0]].settings
        is_random = settings.temperature > 0 or settings.remasking == "random"
        together = 1 if is_random else batch_size
        for start in range(0, len(numbers), together):
            batch = numbers[start : start + together]
            rows = [torch.tensor(requests[number].prompt.context) for number in batch]
            ids_BP = pad_sequence(rows, batch_first=True, padding_value=spec.eos_id or 0, padding_side="left")
            mask_BP = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
            prompt = requests[batch[0]].prompt
            repeat = asked_before[prompt.question, prompt.context]
            asked_before[prompt.question, prompt.context] += 1
            key = stream_key(prompt.context, repeat) if repeat else stream_key(prompt.context)
            stream = generator_for(seed, key).initial_seed()
            generator = torch.Generator(device).manual_seed(stream)
            prompts = ids_BP.to(device), mask_BP.to(device)
            if spec.attention == "causal":
                length, temperature = settings.gen_length, settings.temperature
                canvas = causal_generate(
                    model, *prompts, gen_length=length, temperature=temperature, generator=generator
                )
            else:
                canvas, cost = generate(model, *prompts, settings, generator=generator, return_stats=True)
                stats.add(cost)
            # The text has no special tokens, so that stop texts that are one are looked for among the ids.
            answers = [
                before_end(row, ends | {special[stop] for stop in requests[number].until if stop in special})
                for number, row in zip(batch, canvas[:, ids_BP.shape[1] :].tolist(), strict=True)
            ]
            for number, text in zip(batch, tokenizer.batch_decode(answers, skip_special_tokens=True), strict=True):
                yield number, cut(text, requests[number].until)
