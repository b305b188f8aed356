"""The base of all trainers: reproducible masks, losses as means over examples, an error on non-finite losses.

A subclass defines `prepare` (rows to examples), `make_collator` (examples to batches), the loss and the metrics. The
loss of a step is the mean over its rows (`llada.training.even_rows`).
"""

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProgressCallback, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from llada.data.loading import column_names
from llada.data.prepared import with_known_tokens
from llada.data.tokenizer import SpecialIds, special_ids
from llada.data.turns import record_turns
from llada.denoiser import ModuleDenoiser, as_denoiser
from llada.training.distributed import keep_precision
from llada.training.epochs import EpochCounter
from llada.training.evaluation import EvaluationTrainer
from llada.training.even_rows import PADDING, WeighedCollator, real_rows
from llada.training.inputs import (
    activation_offloading,
    as_datasets,
    load,
    name_beginning,
    row_length,
    set_router_weight,
    tokenizer_of,
    what_is_known,
    with_adapters,
)
from llada.training.metric_sums import MetricSums
from llada.training.progress import Progress
from llada.training.publishing import Publishing
from llada.training.rules import LowAdapterRate, Rule
from llada.training.stopwatch import DATA, EVALUATION, POLICY
from llada.training.throughput import Throughput
from llada.training.trackers import estimator_grouped
from llada.training.warnings import RuleWarnings, warn_of_half_precision

logger = logging.getLogger(__name__)


class DiffusionTrainerBase(Publishing, EvaluationTrainer):
    """A `Trainer` whose masks depend only on seed, epoch and example, and whose loss is a mean over examples.

    Raises:
        ValueError: the tokenizer or its ids do not fit the model, `max_length` exceeds its context, or a row cannot
            be trained on (`llada.errors.DataError`).
        FloatingPointError: the loss or the gradient is not finite; raised before the optimizer step.
    """

    # The columns of `prepare`'s output; rows that have them all are not prepared again.
    prepared_columns: frozenset[str]
    unit = "rows"  # what a weighted row of a batch is
    rules: tuple[type[Rule], ...] = (LowAdapterRate,)  # judge the log lines; what they say is warned of

    def __init__(
        self,
        model: PreTrainedModel | str,
        args,
        data_collator: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
        **trainer_options,
    ):
        if train_dataset is None:
            raise ValueError("`train_dataset` is required: a dataset or a list of rows")
        set_seed(args.seed)  # for the weights of new adapters
        given, model = model, load(model, args.model_init_kwargs, peft_config is not None, quantization_config)
        revision = (args.model_init_kwargs or {}).get("revision")
        processing_class = tokenizer_of(model, given, processing_class, revision, type(self).__name__)
        self.set_tokenizer(processing_class, getattr(model, "config", None), args)
        spec = as_denoiser(model).spec
        self.ids = special_ids(processing_class, spec)
        if hasattr(getattr(model, "config", None), "set_special_ids"):
            model.config.set_special_ids(**vars(self.ids))  # so that the saved model has them
        name_beginning(model, processing_class)
        self.spec = replace(spec, **{f"{name}_id": number for name, number in vars(self.ids).items()})
        if spec.attention == "causal":
            self.tags = tuple(tag.replace("masked-diffusion", "autoregressive") for tag in self.tags)
        self.max_length = row_length(args.max_length, self.spec.context)
        self.custom_collator, self.custom_metrics = data_collator, compute_metrics
        set_router_weight(model, args.router_aux_loss_coef)
        self.model_loaded(model, peft_config, args.model_init_kwargs)
        model = with_adapters(model, peft_config)
        self.args, self.processing_class = args, processing_class  # `prepared` needs them before the Trainer sets them
        self.epoch_counter = EpochCounter()
        self.metric_sums = MetricSums()
        self.step_batches: list[dict[str, Any]] = []  # the micro-batches of the current step
        with what_is_known(args, spec):
            super().__init__(
                model=model,
                args=args,
                data_collator=self.collator(training=True),
                train_dataset=self.prepared(train_dataset, "train_dataset"),
                eval_dataset=None if eval_dataset is None else self.prepared(eval_dataset, "eval_dataset"),
                processing_class=processing_class,
                compute_metrics=self.evaluation_metrics,
                callbacks=[self.epoch_counter, RuleWarnings(self.rules), *(callbacks or [])],
                optimizers=optimizers,
                **trainer_options,
            )
        if args.n_gpu > 1:
            raise ValueError(
                "several GPUs and one process: nn.DataParallel is not supported. Start the script with `accelerate "
                "launch` or torchrun, or make one GPU visible (CUDA_VISIBLE_DEVICES)"
            )
        keep_precision(self.accelerator)
        self.throughput = Throughput.of(self)
        listening = self.callback_handler.callbacks
        listening[:] = [Progress() if type(each) is ProgressCallback else each for each in listening]
        self.check_full_evaluation()
        self.model_accepts_loss_kwargs = True  # the equivalent in releases without `loss_is_scaled_for_ga`
        self._signature_columns = [
            *sorted(self.prepared_columns),
            "seq_lengths",
            PADDING,
        ]  # `remove_unused_columns` keeps these
        self.aux_loss_enabled = any(as_denoiser(self.model).spec.auxiliary_losses.values())
        self.offload = activation_offloading(self.model) if args.activation_offloading else contextlib.nullcontext()
        if hasattr(self.model, "add_model_tags"):  # a model of transformers, which saves them in its card
            self.model.add_model_tags(list(self.tags))
        warn_of_half_precision(self)

    @staticmethod
    def set_tokenizer(tokenizer: PreTrainedTokenizerBase, config, args) -> None:
        """Apply options of the tokenizer, before rows are prepared. config: the model's."""

    @staticmethod
    def prepare(dataset, tokenizer, ids: SpecialIds, args, max_length: int, source: str, training: bool = True):
        """Tokenize rows of text, for training or evaluation; the result has the columns `example_id` and `row`."""
        raise NotImplementedError

    @staticmethod
    def make_collator(args, ids: SpecialIds, training: bool):
        """The data collator; in evaluation (`training` False) a row must not depend on the other rows of its batch."""
        raise NotImplementedError

    @staticmethod
    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Evaluation metrics, from the outputs of `prediction_step` for all rows."""
        raise NotImplementedError

    def model_loaded(self, model: PreTrainedModel, peft_config, init_kwargs: dict[str, Any] | None) -> None:
        """Called in the constructor with the model before it gets new adapters. init_kwargs: `model_init_kwargs`."""

    def collator(self, training: bool):
        """The collator of batches with `row_weight`; `data_collator`, where it is given, collates instead of ours."""
        collator = self.custom_collator or self.make_collator(self.args, self.ids, training)
        return WeighedCollator(collator, self.ids.pad, self.args.pad_to_multiple_of)

    def prepared(self, data, name: str):
        """Rows in any form that TRL takes, as tokenized datasets; rows that are tokenized already stay as they are."""
        data = as_datasets(data, name)
        if isinstance(data, dict):
            return {key: self.prepared(rows, f"{name}[{key!r}]") for key, rows in data.items()}
        if self.prepared_columns <= set(column_names(data)):
            return with_known_tokens(data, len(self.processing_class), name)
        if name == "train_dataset":
            record_turns(self.processing_class, next(iter(data), {}))
        with self.args.main_process_first(desc=f"tokenizing {name}"):
            training = name.startswith("train_dataset")
            return self.prepare(data, self.processing_class, self.ids, self.args, self.max_length, name, training)

    def evaluation_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Our metrics, and those of `compute_metrics`, which gets the same prediction (see `metrics`)."""
        custom = {} if self.custom_metrics is None else self.custom_metrics(prediction)
        return self.metrics(prediction) | custom

    def introduction(self) -> str:
        """Two lines: the recipe, and what departs from TRL. Printed as training begins unless `log_level` is error."""
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The current pass over the data, counted from 0, as used in the keys of the masks."""
        return max(self.epoch_counter.epoch, 0)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # The Trainer excludes norms by name, which misses `ln_f`; here no vector (norm or bias) is decayed.
        matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def train(self, *args, **kwargs):
        self.metric_sums = MetricSums()  # drops those of a run that was interrupted
        self.throughput = Throughput.of(self)
        if self.is_world_process_zero() and self.args.log_level not in ("error", "critical"):
            print(self.introduction())
        return super().train(*args, **kwargs)

    def denoiser(self, model: nn.Module) -> ModuleDenoiser:
        """The denoiser of a model that an engine (DDP, FSDP, DeepSpeed) may have wrapped."""
        return ModuleDenoiser(model, self.spec)

    def auxiliary_loss(self, denoiser: ModuleDenoiser, share_B: Tensor) -> Tensor:
        """Auxiliary losses of the sequences of a batch, weighted and averaged over forward passes; 0 without any.

        Args:
            share_B: the factor of each sequence's loss, as in `share`.
        """
        passes = len(denoiser.auxiliary_losses)
        if not passes:
            return torch.zeros(())
        columns = torch.cat(denoiser.auxiliary_losses).unbind(-1)
        losses = dict(zip(self.spec.auxiliary_losses, columns, strict=True))
        share_N = share_B.repeat(passes).to(columns[0])
        self.metric_sums.add({name: values_N.detach() for name, values_N in losses.items()}, share_N > 0)
        weights = self.accelerator.unwrap_model(self.model).denoiser_spec.auxiliary_losses  # may change during a run
        first, *others = (weights[name] * (share_N * values_N).sum() / passes for name, values_N in losses.items())
        return sum(others, first)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        # The last line of a run, which has "train_loss", takes what the steps since the last log line have left.
        if "loss" in logs or "train_loss" in logs:
            logs |= self.metric_sums.means(self.accelerator) | self.throughput.line(self.accelerator)
        with estimator_grouped():
            super().log(logs, start_time)

    def get_batch_samples(self, epoch_iterator, num_batches: int, device):
        with self.throughput.phase(DATA):
            batches, rows = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.step_batches = batches
        return batches, rows

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        with self.throughput.phase(POLICY):
            return super().training_step(model, inputs, num_items_in_batch)

    def count(self, inputs: dict[str, Tensor]) -> None:
        """Count the rows and tokens of a micro-batch that is trained on."""
        self.metric_sums.count_tokens(inputs["attention_mask"], inputs["row_weight"])
        self.throughput.count(inputs["attention_mask"], inputs["row_weight"])

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        with self.throughput.phase(EVALUATION):
            return super().evaluation_loop(*args, **kwargs)

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm of a step's gradient, with which the Trainer calls this before it lets the optimizer step.

        Raises:
            FloatingPointError: the norm is not finite, unless the loss scale of fp16 is what is too large; it names
                the rows of the step on all processes, which see the same norm.
        """
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is None or math.isfinite(norm):
            return norm
        if self.accelerator.scaler is not None and self.accelerator.scaler.get_scale() > 1:
            return norm  # the scaler skips this step and halves its scale
        found = gather_object([row for batch in self.step_batches for row in real_rows(batch)])
        end = "Training stopped before this step changed a parameter"
        if self.is_deepspeed_enabled:
            end = "DeepSpeed has taken this step already: go on from an earlier checkpoint"
        raise FloatingPointError(
            f"the gradient is not finite (its norm is {float(norm)}) after {self.state.global_step} optimizer steps, "
            f"although all losses are. The step has the rows {', '.join(map(str, sorted(set(found))))}. {end}"
        )

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
