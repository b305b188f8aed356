"""Options of preference training: TRL's names, the paper's values (LLaDA 1.5, arXiv 2505.19223, section 4.1)."""

import json
from dataclasses import dataclass, field

from transformers import TrainingArguments

from vrpo.estimators.designs import DESIGNS, Design, design
from vrpo.losses.pairwise import PreferenceLoss

SFT_WEIGHT = 0.05  # of the SFT loss beside the preference loss (LLaDA 1.5, section 4.1)


@dataclass
class VRPOConfig(TrainingArguments):
    """`TrainingArguments` plus TRL's preference options. Defaults are the paper's recipe (LLaDA 1.5, section 4.1).

    The learning rate is for full fine-tuning; LoRA needs a larger one (1e-5 to 1e-4, ours).
    """

    beta: float = field(default=0.2, metadata={"help": "Scale of the log-ratios in the score, 1/nats."})
    loss_type: list[str] = field(
        default_factory=lambda: ["sigmoid", "sft"],
        metadata={"help": "Losses to add, by TRL's names (vrpo.losses.pairwise), and sft."},
    )
    loss_weights: list[float] | None = field(
        default=None, metadata={"help": "One for each loss_type; default: 0.05 for sft (the paper's), 1 for others."}
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "Rate of flipped labels, for 'robust' and 'exo_pair'."}
    )
    estimator: str = field(default="vrpo", metadata={"help": f"Sampling design: one of {', '.join(DESIGNS)}."})
    n_t: int | None = field(default=None, metadata={"help": "Timesteps for each response; default: the design's."})
    n_y: int | None = field(default=None, metadata={"help": "Masks at each timestep; default: the design's."})
    estimator_options: dict | str | None = field(
        default=None,
        metadata={"help": 'Other options of the design as JSON, such as {"levels": "mirrored"} (vrpo.estimators).'},
    )
    eval_draws: int = field(default=8, metadata={"help": "Timesteps for each response in evaluation (fixed draws)."})
    variance_steps: int = field(
        default=50,
        metadata={
            "help": "Every so many steps, score the batch again with fresh masks to log score/variance. Used only when "
            "the draws are not independent; about 40% of a step; 0 disables."
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Prompt, response and EOS tail; default: the context."}
    )
    eos_tail: int = field(default=1, metadata={"help": "EOS tokens after each response that are scored as content."})
    drop_overlong: bool = field(default=False, metadata={"help": "Leave out pairs over max_length, with a warning."})
    allow_identical: bool = field(default=False, metadata={"help": "Keep pairs whose chosen and rejected are equal."})
    disable_dropout: bool = field(default=True, metadata={"help": "Set every dropout to 0; False is refused."})

    learning_rate: float = field(default=5e-7, metadata={"help": "The paper's, for full fine-tuning."})
    warmup_steps: float = field(default=15, metadata={"help": "Linear warm-up."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "A transformers scheduler name."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW's weight decay."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second-moment decay."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Pairs; 4 x 16 is the paper's 64."})
    gradient_accumulation_steps: int = field(default=16, metadata={"help": "Micro-batches of a step."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the batch carries the mask keys."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: a NaN loss must be seen."})

    def __post_init__(self):
        self.accelerator_config = self.accelerator_config or {"dispatch_batches": False}  # as MaskedDiffusionConfig
        super().__post_init__()
        if not self.disable_dropout:
            raise ValueError(
                "disable_dropout=False is refused: dropout would differ between policy, reference and replay, so that "
                "their difference would be noise. Leave it at True"
            )
        if isinstance(self.loss_type, str):
            self.loss_type = [self.loss_type]
        if self.loss_weights is None:
            self.loss_weights = [SFT_WEIGHT if name == "sft" else 1.0 for name in self.loss_type]
        if isinstance(self.estimator_options, str):
            self.estimator_options = json.loads(self.estimator_options)
        self.loss()
        self.design()
        if self.eval_draws < 1:
            raise ValueError(f"eval_draws={self.eval_draws} must be at least 1")

    def loss(self) -> PreferenceLoss:
        """The weighted sum of losses that is set here."""
        assert self.loss_weights is not None  # `__post_init__` has filled it in
        return PreferenceLoss(tuple(self.loss_type), tuple(self.loss_weights), self.beta, self.label_smoothing)

    def design(self) -> Design:
        """The named sampling design with the options that are set here."""
        return design(self.estimator, n_t=self.n_t, n_y=self.n_y, **(self.estimator_options or {}))  # type: ignore[arg-type]
