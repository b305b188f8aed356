"""Options of preference training: TRL's names, the paper's values (LLaDA 1.5, arXiv 2505.19223, section 4.1)."""

import json
from dataclasses import dataclass

from llada.training.base import DiffusionArguments
from vrpo.estimators.designs import Design, design
from vrpo.losses.pairwise import PreferenceLoss
from vrpo.training.options import VRPOOptions

SFT_WEIGHT = 0.05  # weight of the SFT loss that is added to the preference loss (LLaDA 1.5, section 4.1)


@dataclass
class VRPOConfig(VRPOOptions, DiffusionArguments):
    """`TrainingArguments` with the options of `VRPOOptions`. Defaults are the paper's recipe.

    Raises:
        ValueError: an option that is unknown or out of range.
    """

    def __post_init__(self):
        super().__post_init__()
        if not self.disable_dropout:
            raise ValueError(
                "disable_dropout=False is refused: dropout would differ between policy, reference and replay, which "
                "would add noise to the score. Leave it at True"
            )
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        if self.loss_weights is None:
            self.loss_weights = [SFT_WEIGHT if name == "sft" else 1.0 for name in self.loss_type]
        if isinstance(self.estimator_options, str):
            self.estimator_options = json.loads(self.estimator_options)
        self.loss()
        self.design()
        if self.eos_tail == "batch":
            raise ValueError("eos_tail='batch' is for SFT: a pair's score would depend on its batch. Give a number")

    def loss(self) -> PreferenceLoss:
        """The weighted sum of losses that these options select."""
        assert self.loss_weights is not None  # `__post_init__` has filled it in
        return PreferenceLoss(tuple(self.loss_type), tuple(self.loss_weights), self.beta, self.label_smoothing)

    def design(self) -> Design:
        """The sampling design that these options select."""
        return design(self.estimator, n_t=self.n_t, n_y=self.n_y, **(self.estimator_options or {}))  # type: ignore[arg-type]
