"""The configuration of pretraining and SFT: `TrainingArguments`, the options of TRL's SFTConfig, and ours."""

from dataclasses import dataclass, fields

from transformers import TrainingArguments

from llada.checks import as_mapping, check
from llada.data.rows import RowForm
from llada.diffusion.masking import MaskKind
from llada.training.config import DiffusionArguments
from llada.training.options import MaskedDiffusionOptions
from llada.training.trl_options import REFUSED

NO_METRICS = ("mean_token_accuracy", "entropy")  # TRL's, of logits


@dataclass
class MaskedDiffusionConfig(MaskedDiffusionOptions, DiffusionArguments):
    """`TrainingArguments` with the options of `MaskedDiffusionOptions`.

    The default schedule is warmup-stable-decay with a linear decay to a tenth of the learning rate.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    refused = REFUSED | {
        "loss_type": (
            ("nll", "chunked_nll"),
            "the loss is a bound on the likelihood of the scored tokens. 'dft' weighs a token by its probability given "
            "those before it, which this model does not have. Use 'nll'",
        ),
    }

    def __post_init__(self):
        self.dataset_kwargs = as_mapping("dataset_kwargs", self.dataset_kwargs) or None
        super().__post_init__()
        check("masks", self.masks, MaskKind)
        if str(self.metric_for_best_model).endswith(NO_METRICS):
            raise ValueError(
                f"metric_for_best_model={self.metric_for_best_model!r} is refused: it needs the logits of whole rows, "
                "and the model's head runs at masked positions only. Use 'eval_loss' or 'eval_bits_per_byte'"
            )
        if unknown := set(self.dataset_kwargs or {}) - {"skip_prepare_dataset"}:
            raise ValueError(f"dataset_kwargs has unknown keys {sorted(unknown)}: it may have 'skip_prepare_dataset'")

    @classmethod
    def of(cls, args: TrainingArguments) -> "MaskedDiffusionConfig":
        """The configuration with the options of `args`; those that `args` has at its default keep ours.

        Raises:
            TypeError: `args` is no TrainingArguments.
        """
        if isinstance(args, cls):
            return args
        if type(args) is not TrainingArguments:  # another trainer's configuration has options that would be lost
            raise TypeError(f"args must be a MaskedDiffusionConfig or TrainingArguments, but is {type(args).__name__}")
        defaults = TrainingArguments(output_dir=args.output_dir)
        given = {
            option.name: getattr(args, option.name)
            for option in fields(TrainingArguments)
            if option.init and getattr(args, option.name) != getattr(defaults, option.name)
        }
        return cls(output_dir=args.output_dir, **given)

    def check_causal(self) -> None:
        """Raise ValueError if an option is set that has no meaning for an autoregressive model."""
        defaults = {field.name: field.default for field in fields(MaskedDiffusionOptions)}
        for name, why in (
            ("masks", "it draws no masks"),
            ("eval_draws", "its evaluation draws no masks: one pass is exact"),
            ("eos_tail", "it stops at its first EOS and learns nothing from more"),
        ):
            value = getattr(self, name)
            if value != defaults[name] and (name, value) != ("eos_tail", "0"):
                raise ValueError(
                    f"{name}={value!r} has no meaning for an autoregressive model (config field causal=True): {why}. "
                    f"Leave it out, or set {name}={defaults[name]}"
                )

    def form(self, training: bool) -> RowForm:
        """What is made of the rows of training or evaluation data."""
        packing = self.packing if training or self.eval_packing is None else self.eval_packing
        return RowForm(
            self.dataset_text_field, self.completion_only_loss, self.assistant_only_loss, packing,
            self.packing_strategy, self.allow_special_tokens,
        )  # fmt: skip

    @property
    def skips_preparation(self) -> bool:
        """Whether rows are taken as they are."""
        assert not isinstance(self.dataset_kwargs, str)  # `__post_init__` has read the JSON
        return bool((self.dataset_kwargs or {}).get("skip_prepare_dataset"))
