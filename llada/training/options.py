"""What pretraining and SFT add to `TrainingArguments`, apart from it: reading these options imports nothing heavy."""

from dataclasses import dataclass, field


@dataclass
class DiffusionOptions:
    """What every trainer here adds or sets otherwise."""

    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a row, EOS tail included; default: the model's context."}
    )
    eos_tail: str = field(
        default="1",
        metadata={
            "help": "EOS tokens after each response that are scored as content: a number, or in SFT 'batch' (to the "
            "longest row of the batch)."
        },
    )
    drop_overlong: bool = field(default=False, metadata={"help": "Leave out rows over max_length, with a warning."})

    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second-moment decay."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: batches carry example ids."})
    # On, a NaN would be logged as the mean of the losses before it. The trainer stops at the first one instead.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: a NaN loss must be seen."})


@dataclass
class MaskedDiffusionOptions(DiffusionOptions):
    """Defaults are LLaDA's where its papers state them."""

    masks: str = field(
        default="bernoulli", metadata={"help": "Masks in training: 'bernoulli' (weight 1/t) or 'exact_count' (L/l)."}
    )
    random_length_probability: float = field(
        default=0.0, metadata={"help": "Pretraining: share of rows cut to a random length (LLaDA: 0.01)."}
    )
    eval_draws: int = field(default=4, metadata={"help": "Stratified exact-count masks for each evaluated row."})
    decay_steps: float = field(
        default=0.1, metadata={"help": "Last steps of the schedule, in which it decays: a number, or a share below 1."}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="warmup_stable_decay", metadata={"help": "A transformers scheduler name."})
