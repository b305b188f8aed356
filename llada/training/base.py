"""The base of all trainers: reproducible masks, an error on non-finite losses, evaluation independent of batch size.

A subclass defines `prepare` (rows to examples), `make_collator` (examples to batches), the loss and the metrics.
"""

import logging
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction

from llada.data.loading import column_names
from llada.data.tokenizer import SpecialIds, special_ids
from llada.denoiser import ModuleDenoiser, as_denoiser
from llada.models.common.lora import wrap_with_adapters

logger = logging.getLogger(__name__)


@dataclass
class DiffusionArguments(TrainingArguments):
    """`TrainingArguments` that check `DiffusionOptions`; a subclass lists its options class before this one."""

    def __post_init__(self):
        # Each process collates its own rows of a stream: accelerate's default would join batches of different widths.
        self.accelerator_config = self.accelerator_config or {"dispatch_batches": False}
        super().__post_init__()
        self.eos_tail = str(self.eos_tail)
        if self.eos_tail != "batch" and not self.eos_tail.isdigit():
            raise ValueError(f"eos_tail={self.eos_tail!r} must be a number of tokens or 'batch'")
        if self.eval_draws < 1:
            raise ValueError(f"eval_draws={self.eval_draws} must be at least 1")


class EpochCounter(TrainerCallback):
    """Count passes over the data; the count is the epoch in the keys of the masks' random streams.

    `TrainerState.epoch` is a share of the steps, which for streamed data does not reach 1 at the end of a pass.
    """

    def __init__(self):
        self.epoch = -1
        self.step = -1

    def on_train_begin(self, args, state, control, **kwargs):
        self.epoch = self.step = -1

    def on_epoch_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError(
                "a pass over the training data trained no step: the data is shorter than one batch, or it is a stream "
                "that ended before the step to resume from (a stream can be resumed in its first pass only)"
            )
        self.step = state.global_step
        self.epoch = max(self.epoch + 1, math.floor(state.epoch or 0.0))


def row_length(max_length: int | None, context: int) -> int:
    """`max_length`, or the model's context where it is None.

    Raises:
        ValueError: `max_length` exceeds the context.
    """
    if max_length is not None and not 1 <= max_length <= context:
        raise ValueError(f"max_length={max_length} must be between 1 and the model's context, {context}")
    return context if max_length is None else max_length


def load(model: PreTrainedModel | str, adapters: bool) -> PreTrainedModel:
    """Load a model by name or path in fp32, or as saved if only adapters are trained; a model is returned as it is."""
    if not isinstance(model, str):
        return model
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto" if adapters else torch.float32)


class DiffusionTrainerBase(Trainer):
    """A `Trainer` whose masks depend only on seed, epoch and example, and whose loss is a mean over examples.

    Raises:
        ValueError: the tokenizer or its ids do not fit the model, `max_length` exceeds its context, or a row cannot
            be trained on (`llada.errors.DataError`).
        FloatingPointError: the loss is not finite; raised before the optimizer step.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean: the Trainer divides it by the accumulation steps

    def __init__(
        self,
        model: PreTrainedModel | str,
        args,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
    ):
        if processing_class is None:
            raise ValueError(f"{type(self).__name__} needs processing_class, the tokenizer")
        model = load(model, adapters=peft_config is not None)
        spec = as_denoiser(model).spec
        self.ids = special_ids(processing_class, spec)
        self.spec = replace(spec, **{f"{name}_id": number for name, number in vars(self.ids).items()})
        max_length = row_length(args.max_length, self.spec.context)
        if peft_config is not None:
            model = wrap_with_adapters(model, peft_config)

        def prepared(dataset, name: str):
            if dataset is None or "example_id" in column_names(dataset):
                return dataset
            with args.main_process_first(desc=f"tokenizing {name}"):
                return self.prepare(dataset, processing_class, self.ids, args, max_length, name)

        train_dataset, eval_dataset = prepared(train_dataset, "train_dataset"), prepared(eval_dataset, "eval_dataset")
        self.epoch_counter = EpochCounter()
        self.metric_sums: dict[str, Tensor] = {}
        super().__init__(
            model=model,
            args=args,
            data_collator=self.make_collator(args, self.ids, training=True),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=self.metrics,
            callbacks=[self.epoch_counter, *(callbacks or [])],
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False  # the equivalent in releases without `loss_is_scaled_for_ga`
        warn_of_half_precision(self)

    @staticmethod
    def prepare(dataset, tokenizer, ids: SpecialIds, args, max_length: int, source: str):
        """Tokenize rows of text; the result has the columns `example_id` and `row`."""
        raise NotImplementedError

    @staticmethod
    def make_collator(args, ids: SpecialIds, training: bool):
        """The data collator; in evaluation (`training` False) a row must not depend on the other rows of its batch."""
        raise NotImplementedError

    @staticmethod
    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Evaluation metrics, from the outputs of `prediction_step` for all rows."""
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The current pass over the data, counted from 0, as used in the keys of the masks."""
        return max(self.epoch_counter.epoch, 0)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # The Trainer excludes norms by name, which misses `ln_f`; here no vector (norm or bias) is decayed.
        matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def get_eval_dataloader(self, eval_dataset=None):
        # The Trainer would use training settings for held-out rows too: drop an incomplete batch, and pad EOS to the
        # longest row of the batch.
        kept = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last = False
        self.data_collator = self.make_collator(self.args, self.ids, training=False)
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last, self.data_collator = kept

    def denoiser(self, model: nn.Module) -> ModuleDenoiser:
        """The denoiser of a model that an engine (DDP, FSDP, DeepSpeed) may have wrapped."""
        return ModuleDenoiser(model, self.spec)

    def auxiliary_loss(self, denoiser: ModuleDenoiser) -> Tensor:
        """Weighted mean over sequences of the auxiliary losses of all forward passes; 0 where there are none."""
        if not denoiser.auxiliary_losses:
            return torch.zeros(())
        columns = torch.cat(denoiser.auxiliary_losses).unbind(-1)
        losses = dict(zip(self.spec.auxiliary_losses, columns, strict=True))
        self.add_metrics({name: values_N.detach() for name, values_N in losses.items()})
        weights = self.accelerator.unwrap_model(self.model).denoiser_spec.auxiliary_losses  # may change during a run
        first, *others = (weights[name] * values_N.mean() for name, values_N in losses.items())
        return sum(others, first)

    def add_metrics(self, metrics: dict[str, Tensor]) -> None:
        """Add the values of N examples, [N] for each metric, to the means in the next log line."""
        for name, values_N in metrics.items():
            entry = torch.stack([values_N.double().sum(), torch.tensor(float(len(values_N))).to(values_N.device)])
            self.metric_sums[name] = self.metric_sums.get(name, 0) + entry

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.metric_sums:
            sums = self.accelerator.reduce(torch.stack(list(self.metric_sums.values())), "sum")
            logs |= dict(zip(self.metric_sums, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
            self.metric_sums = {}
        super().log(logs, start_time)

    def check_finite(self, value_B: Tensor, inputs: dict[str, Tensor], what: str = "loss") -> None:
        """Raise FloatingPointError if a value [B] is nan or infinite; the message names its row of the dataset."""
        bad = (~torch.isfinite(value_B.detach())).nonzero()[:, 0].tolist()
        if bad:
            names = "; ".join(
                f"row {int(inputs['row'][b])} (example id {int(inputs['example_id'][b])}): {value_B[b].item()}"
                for b in bad
            )
            raise FloatingPointError(
                f"the {what} is not finite after {self.state.global_step} optimizer steps, for {len(bad)} of "
                f"{len(value_B)} examples of the batch: {names}. Training stopped before this batch changed a parameter"
            )


def warn_of_half_precision(trainer: Trainer) -> None:
    """Warn on half-precision weights: updates of 2.5e-5 to a weight of 0.02 are below half bfloat16's spacing."""
    half = {p.dtype for p in trainer.model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if half and not trainer.is_deepspeed_enabled:  # DeepSpeed keeps fp32 master weights
        logger.warning(
            "the trained weights are %s: small updates round away. Load the model with dtype float32 and set "
            "bf16=True, which computes in bfloat16 and keeps float32 weights",
            half.pop(),
        )
