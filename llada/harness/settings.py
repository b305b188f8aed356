"""The options of the harness's model, `--model_args NAME=VALUE,...`."""

from dataclasses import dataclass, fields
from typing import Annotated, Any

from llada.checks import NOT_EMPTY, OneOf, PositiveFloat, PositiveInt, check_fields
from llada.cli.arguments import SamplerOptions
from llada.diffusion.scoring import CONFIDENCE, DESIGNS, ScoreSettings

SAMPLER = tuple(each.name for each in fields(SamplerOptions))


@dataclass
class HarnessSettings:
    """Options of `llada.harness.model.HarnessModel`, beside those of the sampler (`llada.SamplerSettings`).

    pretrained: a model or adapter directory, or a hub name. dtype: of its weights; "auto": as saved.
    preset: published sampler settings, such as "llada-1.5/gsm8k".
    batch_size: rows of a forward pass in scoring, and prompts that are sampled together.
    max_length: tokens that a request may have with its answer; None: the model's context.
    design, draws, group, lead, seed: how answers are scored (`llada.diffusion.scoring`). cfg_scale, of the sampler's
        options, guides scoring too.
    coupled: the options of a question share their draws.
    truncate: cut the beginning of requests that are too long; else they end the evaluation before it begins.

    Raises:
        ValueError: a value is out of range.
    """

    pretrained: Annotated[str, NOT_EMPTY]
    preset: str | None = None
    device: str = "auto"
    dtype: Annotated[str, OneOf(("auto", "float32", "bfloat16"))] = "auto"
    batch_size: PositiveInt = 8
    max_length: PositiveInt | None = None
    design: Annotated[str, OneOf((*DESIGNS, CONFIDENCE))] = "loo_complementary"
    draws: PositiveInt = 128
    group: PositiveInt = 16
    lead: PositiveFloat | None = None
    seed: int = 0
    coupled: bool = False
    truncate: bool = False

    def __post_init__(self):
        check_fields(self)
        self.scoring()

    def scoring(self) -> ScoreSettings:
        return ScoreSettings(self.design, self.draws, self.group, self.lead, self.batch_size, self.seed)


def read_options(options: dict[str, Any]) -> tuple[HarnessSettings, SamplerOptions]:
    """Options by name as settings of the model and of its sampler.

    Raises:
        ValueError: a name is unknown or a value is out of range.
    """
    ours = [each.name for each in fields(HarnessSettings)]
    if unknown := sorted(set(options) - {*ours, *SAMPLER}):
        raise ValueError(f"model_args: unknown options {unknown}; there are {ours}, and of the sampler {list(SAMPLER)}")
    if not options.get("pretrained"):
        raise ValueError("model_args: pretrained is missing, a model or adapter directory, or a hub name")
    settings = HarnessSettings(**{name: value for name, value in options.items() if name in ours})
    return settings, SamplerOptions(**{name: value for name, value in options.items() if name in SAMPLER})
