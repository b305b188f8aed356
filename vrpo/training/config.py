"""Options of preference training: TRL's names, the paper's values (LLaDA 1.5, arXiv 2505.19223, section 4.1)."""

from dataclasses import dataclass

from llada.checks import as_mapping
from llada.training.config import DiffusionArguments
from llada.training.trl_options import REFUSED
from vrpo.estimators.designs import Design, design
from vrpo.losses.pairwise import PreferenceLoss
from vrpo.training.options import VRPOOptions

SFT_WEIGHT = 0.05  # weight of the SFT loss that is added to the preference loss (LLaDA 1.5, section 4.1)


def parse_options(options: dict | str | None) -> dict:
    """Options of a design, given as a mapping or as JSON.

    Raises:
        ValueError: it is neither, or holds an option that the trainer has itself.
    """
    found = as_mapping("estimator_options", options)
    if {"n_t", "n_y"} & set(found):
        raise ValueError(
            f"estimator_options={options!r} must be a mapping without n_t and n_y, which are options apart"
        )
    return found


@dataclass
class VRPOConfig(VRPOOptions, DiffusionArguments):
    """`TrainingArguments` with the options of `VRPOOptions`. Defaults are the paper's recipe.

    Raises:
        ValueError: an option that is unknown or out of range.
    """

    refused = REFUSED | {  # no annotation: an attribute of the class, not an option
        "disable_dropout": (
            (True,),
            "dropout would differ between policy and reference, which would add noise to the score. Leave it at True",
        ),
    }

    def __post_init__(self):
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        super().__post_init__()
        if self.sync_ref_model and self.precompute_ref_log_probs:
            raise ValueError(
                "sync_ref_model changes the reference, which precompute_ref_log_probs takes as fixed: set one"
            )
        if self.ref_log_probs_dir is not None and not self.precompute_ref_log_probs:
            raise ValueError(
                f"ref_log_probs_dir={self.ref_log_probs_dir!r} is for precompute_ref_log_probs=True: set it, or leave "
                "the directory out"
            )
        if self.precompute_ref_log_probs and (self.bf16_full_eval or self.fp16_full_eval):
            raise ValueError(
                "bf16_full_eval and fp16_full_eval cast the policy for an evaluation, and the reference's scores of "
                "precompute_ref_log_probs are stored in its own precision: leave one out"
            )
        if self.loss_weights is None:
            self.loss_weights = [SFT_WEIGHT if name == "sft" else 1.0 for name in self.loss_type]
        self.estimator_options = parse_options(self.estimator_options)
        self.loss()
        self.design()
        if self.ld_alpha not in (None, 1) and set(self.loss_type) == {"sft"}:
            raise ValueError(
                f"ld_alpha={self.ld_alpha} changes nothing with loss_type=['sft'], which has no log-ratio: leave it out"
            )
        if self.unit_gradients and self.kept_draws is not None:
            raise ValueError(f"kept_draws={self.kept_draws} and unit_gradients=True exclude each other: set one")
        if self.eos_tail == "batch":
            raise ValueError("eos_tail='batch' is for SFT: a pair's score would depend on its batch. Give a number")

    def loss(self) -> PreferenceLoss:
        """The weighted sum of losses that these options select."""
        assert self.loss_weights is not None  # `__post_init__` has filled it in
        return PreferenceLoss(
            tuple(self.loss_type),
            tuple(self.loss_weights),
            self.beta,
            self.label_smoothing,
            self.f_divergence_type,
            self.f_alpha_divergence_coef,
            self.discopop_tau,
            self.use_weighting,
        )

    def design(self) -> Design:
        """The sampling design that these options select."""
        return design(self.estimator, n_t=self.n_t, n_y=self.n_y, **parse_options(self.estimator_options))
