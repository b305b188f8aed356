"""Sampler settings of LLaDA's published evaluations, by model and benchmark: `preset("llada-1.5/gsm8k")`.

Sources: the evaluation page of the LLaDA repository, its script for the reversal of poems, and Table 6 of LLaDA 1.5
(arXiv 2505.19223) for the rest: IFEval of LLaDA-8B-Instruct and the three benchmarks with a judge, in which EOS has
confidence 0, as that paper says. All are greedy and commit one token per step. Which harness task a benchmark is, and
its published number: `llada.harness.published`.
"""

from collections.abc import Mapping
from typing import TypeVar

from llada.sampling.settings import SamplerSettings

T = TypeVar("T")


def blocks(length: int, block: int, **changes) -> SamplerSettings:
    """Semi-autoregressive sampling: `length` tokens in blocks of `block`, one token per step."""
    return SamplerSettings(steps=length, gen_length=length, block_length=block, **changes)


def whole(length: int, **changes) -> SamplerSettings:
    """Pure diffusion: `length` tokens in one block, one token per step."""
    return blocks(length, length, **changes)


EOS_LAST = {"confidence_eos_eot_inf": True}
PRESETS: dict[str, dict[str, SamplerSettings]] = {
    "llada-base": {name: whole(1024) for name in ("bbh", "gsm8k", "humaneval", "math", "mbpp")},
    "llada-instruct": {
        "arc_challenge": whole(512),
        "gpqa": whole(64, **EOS_LAST),
        "gsm8k": whole(512, **EOS_LAST),
        "hellaswag": whole(3),
        "humaneval": whole(512, logits_eos_inf=True),
        "math": whole(512, **EOS_LAST),
        "mbpp": whole(256, **EOS_LAST),
        "mmlu": whole(3),
        "mmlu_pro": whole(256),
        "poem_forward": whole(28, logits_eos_inf=True),
        "poem_reversal": whole(28, logits_eos_inf=True),
    },
    "llada-instruct-blocks": {
        "gsm8k": blocks(256, 8),
        "math": blocks(512, 64),
        "alignbench": blocks(512, 32, **EOS_LAST),
        "arena_hard": blocks(1024, 128, **EOS_LAST),
        "ifeval": blocks(512, 512, **EOS_LAST),
        "mt_bench": blocks(512, 32, **EOS_LAST),
    },
    "llada-1.5": {
        "gpqa": blocks(256, 16),
        "gsm8k": blocks(256, 16, **EOS_LAST),
        "humaneval": blocks(512, 32, **EOS_LAST),
        "ifeval": blocks(256, 16, **EOS_LAST),
        "math": blocks(1024, 128, **EOS_LAST),
        "mbpp": blocks(512, 32, **EOS_LAST),
        "alignbench": blocks(512, 32, **EOS_LAST),
        "arena_hard": blocks(1024, 128, **EOS_LAST),
        "mt_bench": blocks(256, 16, **EOS_LAST),
    },
}


def preset(name: str) -> SamplerSettings:
    """The published settings of "MODEL/BENCHMARK".

    Raises:
        ValueError: the name is unknown; the message lists the models, or the model's benchmarks.
    """
    return entry(PRESETS, name, "model")


def entry(table: Mapping[str, Mapping[str, T]], name: str, kind: str) -> T:
    """The entry of a table of tables under "KIND/BENCHMARK".

    Raises:
        ValueError: one of the two names is unknown; the message lists those that there are.
    """
    of, _, benchmark = name.partition("/")
    if of not in table:
        raise ValueError(f"preset={name!r} must be {kind.upper()}/BENCHMARK with a {kind} of {sorted(table)}")
    if benchmark not in table[of]:
        raise ValueError(f"preset={name!r} is unknown: of {of} there are {sorted(table[of])}")
    return table[of][benchmark]
