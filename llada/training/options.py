"""The options that pretraining and SFT add to `TrainingArguments`; importing this module does not import torch."""

from dataclasses import dataclass, field


@dataclass
class DiffusionOptions:
    """Options that every trainer adds, and `TrainingArguments` whose default is another one here."""

    max_length: int | None = field(
        default=None, metadata={"help": "Maximal tokens of a row, EOS tail included; default: the model's context."}
    )
    eos_tail: str = field(
        default="1",
        metadata={
            "help": "EOS tokens that are appended to each response and scored: a number, or in SFT 'batch' (up to the "
            "length of the longest row of the batch)."
        },
    )
    drop_overlong: bool = field(default=False, metadata={"help": "Drop rows over max_length, with a warning."})
    drop_invalid: bool = field(
        default=False,
        metadata={"help": "Leave out all rows that cannot be trained on (over-long ones too), with a warning."},
    )
    dataset_num_proc: int | None = field(
        default=None, metadata={"help": "Processes that tokenize; documents are packed in one."}
    )

    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second-moment decay."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: masks need the example ids."})
    # If it were on, a NaN would be logged as the mean of earlier losses. The trainer stops at the first NaN.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Off, so that a NaN loss is not hidden."})


@dataclass
class MaskedDiffusionOptions(DiffusionOptions):
    """Options of pretraining and SFT. Defaults are those of LLaDA's papers where they state one."""

    masks: str = field(
        default="bernoulli", metadata={"help": "Training masks: 'bernoulli' (weight 1/t) or 'exact_count' (L/l)."}
    )
    random_length_probability: float = field(
        default=0.0, metadata={"help": "In pretraining, share of rows that are cut to a random length (LLaDA: 0.01)."}
    )
    eval_draws: int = field(default=4, metadata={"help": "Masks (stratified exact counts) per evaluated row."})
    decay_steps: float = field(
        default=0.1, metadata={"help": "Steps of the learning rate's final decay: a number, or a share below 1."}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="warmup_stable_decay", metadata={"help": "A transformers scheduler's name."})
