"""The options that pretraining and SFT add to `TrainingArguments`; importing this module does not import torch."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from llada.checks import NOT_EMPTY, EosTail, NonNegativeFloat, OneOf, PositiveInt, Share, Steps

STRATEGIES = ("bfd", "bfd_split", "wrapped")


@dataclass
class DiffusionOptions:
    """Options that every trainer adds, and `TrainingArguments` whose default is another one here."""

    max_length: PositiveInt | None = field(
        default=None, metadata={"help": "Maximal tokens of a row, EOS tail included; default: the model's context."}
    )
    eos_tail: EosTail = field(
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
    allow_special_tokens: bool = field(
        default=False,
        metadata={"help": "Plain text may spell special tokens, as chats that are rendered already do; else refused."},
    )
    dataset_num_proc: PositiveInt | None = field(
        default=None, metadata={"help": "Processes that tokenize; documents are packed in one."}
    )

    # TRL's options of the model and of a batch
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of from_pretrained for a model given by name, as JSON."}
    )
    router_aux_loss_coef: NonNegativeFloat | None = field(
        default=None, metadata={"help": "Weight of the load-balancing loss (LLaDA-MoE); default: the model's."}
    )
    pad_to_multiple_of: int | str | None = field(
        default="auto", metadata={"help": "Pad batches to a multiple of this length; 'auto': to the longest row."}
    )
    activation_offloading: bool = field(
        default=False, metadata={"help": "Keep the activations of a step in the CPU's memory (TRL)."}
    )
    # Accepted for TRL's scripts at the value that asks for nothing (llada.training.trl_options.REFUSED)
    trust_remote_code: bool = field(default=False, metadata={"help": "Never needed; True is refused."})
    truncation_mode: str = field(default="keep_start", metadata={"help": "Without effect: rows are never truncated."})
    padding_free: bool = field(default=False, metadata={"help": "True is refused: batches are padded."})
    pad_token: str | None = field(default=None, metadata={"help": "Refused: set tokenizer.pad_token."})

    logging_steps: float = field(default=10, metadata={"help": "Log every this many steps, as in TRL."})
    bf16: bool | None = field(
        default=None, metadata={"help": "Compute in bfloat16; default: where an accelerator supports it."}
    )
    activation_checkpointing: bool | None = field(
        default=None, metadata={"help": "Recompute activations, for memory; default: on an accelerator, not on a CPU."}
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
    random_length_probability: Share = field(
        default=0.0, metadata={"help": "In pretraining, share of rows that are cut to a random length (LLaDA: 0.01)."}
    )
    completion_only_loss: bool | None = field(
        default=None,
        metadata={"help": "Score completions only; False: prompts too. Default: on for prompts and completions."},
    )
    assistant_only_loss: bool | None = field(
        default=None,
        metadata={"help": "Make a row of each assistant turn; False: score whole dialogues. Default: on for messages."},
    )
    packing: bool | None = field(
        default=None,
        metadata={
            "help": "Pack rows of max_length tokens (False: never). Default: documents are concatenated and cut."
        },
    )
    packing_strategy: Annotated[str, OneOf(STRATEGIES)] | None = field(
        default=None,
        metadata={
            "help": "bfd (whole rows, which do not see each other; TRL's default with packing=True), bfd_split (cuts "
            "longer documents) or wrapped (documents; the default where packing is not set)."
        },
    )
    eval_packing: bool | None = field(default=None, metadata={"help": "packing of evaluation data; default: the same."})
    shuffle_dataset: bool = field(default=False, metadata={"help": "Shuffle the training data before it is packed."})
    dataset_text_field: Annotated[str, NOT_EMPTY] = field(default="text", metadata={"help": "Column of documents."})
    dataset_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": '{"skip_prepare_dataset": true}: rows are tokenized already, as JSON.'}
    )
    chat_template_path: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "A .jinja file, or a tokenizer whose chat template is taken."}
    )
    eos_token: Annotated[str, NOT_EMPTY] | None = field(
        default=None, metadata={"help": "The EOS token; default: the tokenizer's."}
    )
    loss_type: str = field(default="nll", metadata={"help": "Only 'nll': the likelihood bound."})
    eval_draws: PositiveInt = field(default=4, metadata={"help": "Masks (stratified exact counts) per evaluated row."})
    decay_steps: Steps = field(
        default=0.1, metadata={"help": "Steps of the learning rate's final decay: a number, or a share below 1."}
    )
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="warmup_stable_decay", metadata={"help": "A transformers scheduler's name."})
