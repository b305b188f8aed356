"""The settings of `llada.generate`, validated on construction and saved in a model's directory."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from llada.checks import NonNegativeFloat, OneOf, PositiveFloat, PositiveInt, Range, check_fields

REMASKING = ("low_confidence", "top_probability", "random")
CACHES = ("prefix", "dual")


@dataclass
class SamplerSettings:
    """Settings of `generate`; names and meaning follow the official samplers.

    steps: total number of denoising steps, shared evenly by the gen_length / block_length blocks.
    temperature: 0 is greedy; above it, tokens are drawn from softmax(logits / temperature).
    cfg_scale: guidance scale w of `llada.sampling.guidance`.
    remasking: the tokens that a step keeps. "low_confidence": the drawn tokens with the highest probability, as in the
        papers; above temperature 0, unlikely tokens are then drawn again until they are likely. "top_probability": the
        positions whose most probable token has the highest probability, whatever was drawn, so that samples keep the
        model's diversity (the same at temperature 0). "random": random positions.
    threshold, factor: commit as many tokens per step as are confident (approximate; `selection`). `steps` is then not
        used: a block takes as many steps as it needs.
    cache: "prefix" or "dual" (approximate; `block_cache`); refresh_every: steps between recomputations of the cache.
    grow: hide later blocks from the model instead of showing a window of gen_length MASKs (iLLaDA, arXiv 2606.25331).
    logits_eos_inf: EOS is never predicted. confidence_eos_eot_inf: EOS and end-of-turn are committed last.
    stop_at_eos: when a block is finished and the answer has an EOS with no MASK before it, fill the rest with EOS. The
        text up to EOS is the same as without.
    allow_mask: let the model emit MASK, as the official code does.
    """

    steps: PositiveInt = 128
    gen_length: PositiveInt = 128
    block_length: PositiveInt = 128
    temperature: NonNegativeFloat = 0.0
    cfg_scale: NonNegativeFloat = 0.0
    remasking: Annotated[str, OneOf(REMASKING)] = "low_confidence"
    threshold: Annotated[float, Range(above=0, at_most=1)] | None = None
    factor: PositiveFloat | None = None
    cache: Annotated[str, OneOf(CACHES)] | None = None
    refresh_every: PositiveInt | None = None
    grow: bool = False
    logits_eos_inf: bool = False
    confidence_eos_eot_inf: bool = False
    stop_at_eos: bool = True
    allow_mask: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.refresh_every is not None and self.cache is None:
            raise ValueError(f"refresh_every={self.refresh_every} needs a cache")
        if self.threshold is not None and self.factor is not None:
            raise ValueError("threshold and factor are two rules: set one of them")
        if self.remasking == "random" and not self.fixed_steps:
            raise ValueError("remasking='random' computes no confidence, which threshold and factor need")
        if self.allow_mask and not self.fixed_steps:
            raise ValueError("allow_mask needs the share of steps: with threshold or factor it might never end")

    @property
    def fixed_steps(self) -> bool:
        """Whether steps commit a fixed number of tokens, rather than those that are confident."""
        return self.threshold is None and self.factor is None

    def check_blocks(self) -> None:
        """Raise ValueError unless `block_length` divides `gen_length` and the number of blocks divides `steps`."""
        length, block = self.gen_length, self.block_length
        if length % block:
            down, up = length // block * block, -(-length // block) * block
            such = f"{down} or {up}" if down else f"{up}; or block_length={length}"
            raise ValueError(f"gen_length={length} must be a multiple of block_length={block}, such as {such}")
        if self.fixed_steps and self.steps % (length // block):
            raise ValueError(
                f"steps={self.steps} must be a multiple of the number of blocks, gen_length / block_length="
                f"{length // block}"
            )

    def save(self, folder: str | Path) -> None:
        """Write `sampler.json` into a model's directory."""
        Path(folder, FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "SamplerSettings":
        """Read `sampler.json` from a model's directory; the defaults if there is none.

        Raises:
            ValueError: the file is no JSON object, a field is unknown or a value is out of range; the message names
                the file.
        """
        file = Path(folder, FILE)
        if not file.exists():
            return cls()
        try:
            found = json.loads(file.read_text())
        except ValueError as error:  # also text in another encoding
            raise ValueError(f"{file} cannot be read as JSON: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file} must hold a JSON object with the settings, but holds {found!r:.80}")
        unknown = set(found) - {setting.name for setting in fields(cls)}
        if unknown:
            raise ValueError(f"{file}: unknown settings {sorted(unknown)}")
        try:
            return cls(**found)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


FILE = "sampler.json"
