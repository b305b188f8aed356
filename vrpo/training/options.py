"""Options that preference training adds to `TrainingArguments`. Importing them does not import torch.

Names are TRL's, values the paper's (LLaDA 1.5, arXiv 2505.19223, section 4.1).
"""

from dataclasses import dataclass, field
from typing import Annotated

from llada.checks import NOT_EMPTY, NonNegativeInt, PositiveInt, Share
from llada.training.options import DiffusionOptions


@dataclass
class VRPOOptions(DiffusionOptions):
    """The default learning rate is for full fine-tuning; LoRA needs a larger one (our choice: 1e-5 to 1e-4)."""

    beta: float = field(default=0.2, metadata={"help": "Scale of the log-ratios in the score, 1/nats."})
    loss_type: Annotated[list[str], NOT_EMPTY] = field(
        default_factory=lambda: ["sigmoid", "sft"],
        metadata={"help": "Losses to sum, by TRL's names; sft is one (vrpo.losses.pairwise)."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each loss_type; default: 0.05 for sft (the paper's), 1 for others."}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Assumed rate of flipped labels, for robust, exo_pair, aot and aot_unpaired."}
    )
    f_divergence_type: str = field(
        default="reverse_kl",
        metadata={"help": "Divergence: reverse_kl, forward_kl, js_divergence or alpha_divergence (docs/losses.md)."},
    )
    f_alpha_divergence_coef: float = field(
        default=0.5, metadata={"help": "Coefficient of alpha_divergence: 0 is forward_kl, 1 reverse_kl."}
    )
    discopop_tau: float = field(default=0.05, metadata={"help": "Temperature of the loss discopop."})
    use_weighting: bool = field(
        default=False, metadata={"help": "Weigh pairs by the policy's probability of them, by token (WPO)."}
    )
    estimator: str = field(
        default="vrpo",
        metadata={
            "help": "Sampling design: vrpo, vrpo_bernoulli, naive_dpo, loo_complementary, mirror, espo, balanced or "
            "gauss_legendre (biased)."
        },
    )
    n_t: PositiveInt | None = field(
        default=None, metadata={"help": "Timesteps for each response; default: the design's."}
    )
    n_y: PositiveInt | None = field(default=None, metadata={"help": "Masks at each timestep; default: the design's."})
    estimator_options: dict | str | None = field(
        default=None,
        metadata={"help": 'Other options of the design as JSON, such as {"levels": "mirrored"} (vrpo.estimators).'},
    )
    eval_draws: PositiveInt = field(
        default=8, metadata={"help": "Timesteps for each response in evaluation; masks are fixed."}
    )
    variance_steps: NonNegativeInt = field(
        default=50,
        metadata={
            "help": "Every this many steps, score the batch again with fresh masks to log score/variance. Used only if "
            "the draws are not independent; costs about two fifths of a step; 0 disables."
        },
    )
    noise_split_steps: NonNegativeInt = field(
        default=0,
        metadata={
            "help": "Every this many steps, split the noise of the gradient into what the pairs and what the masks "
            "add, and log means over the run (noise/...). A measurement draws masks anew twice for at most 8 pairs of "
            "each process, and computes the gradient of each; 0: never."
        },
    )
    allow_identical: bool = field(default=False, metadata={"help": "Keep pairs whose chosen and rejected are equal."})
    ld_alpha: Share | None = field(
        default=None,
        metadata={"help": "LD-DPO: weight of a response's tokens beyond the shorter one's length; default: none (1)."},
    )
    kept_draws: PositiveInt | None = field(
        default=None,
        metadata={
            "help": "Draws whose graphs are kept from the scores for the gradient; the others are forwarded twice. "
            "Default: chosen by memory."
        },
    )
    unit_gradients: bool | None = field(
        default=None,
        metadata={
            "help": "Compute the gradient of one response at a time, in two buffers of the trained parameters, so that "
            "no draw is forwarded twice. Default: chosen by memory."
        },
    )
    draws_per_forward: PositiveInt | None = field(
        default=None,
        metadata={
            "help": "The most tokens of a forward pass, in draws of the batch without padding (with sharded engines: "
            "draws of a response). Default: 1."
        },
    )
    precompute_ref_log_probs: bool = field(
        default=False,
        metadata={
            "help": "Score the reference once, before training, under the masks of every epoch, and store the scores, "
            "so that training holds one model. score/variance of dependent draws (variance_steps) is then left out."
        },
    )
    precompute_ref_batch_size: PositiveInt | None = field(
        default=None, metadata={"help": "Pairs that are scored together then; default: per_device_train_batch_size."}
    )
    ref_log_probs_dir: Annotated[str, NOT_EMPTY] | None = field(
        default=None,
        metadata={
            "help": "Directory of the stored scores, which runs that differ in loss or rate may share; default: "
            "'reference' in output_dir."
        },
    )
    sync_ref_model: bool = field(
        default=False, metadata={"help": "TR-DPO: move the reference towards the policy during training."}
    )
    ref_model_mixup_alpha: Share = field(
        default=0.6, metadata={"help": "Share of the policy in the reference after a synchronization (TR-DPO)."}
    )
    ref_model_sync_steps: PositiveInt = field(
        default=512, metadata={"help": "Steps between synchronizations (TR-DPO)."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Set every dropout to 0; False is refused."})
    learning_rate: float = field(default=5e-7, metadata={"help": "Peak rate; the paper's, for full fine-tuning."})
    warmup_steps: float = field(default=15, metadata={"help": "Steps of linear warm-up."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "A transformers scheduler name."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Pairs; 4 x 16 gives the paper's 64."})
    gradient_accumulation_steps: int = field(default=16, metadata={"help": "Micro-batches in a step."})
