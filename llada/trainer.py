"""Pretraining and SFT on `transformers.Trainer`; they differ only in what may be masked: a document, or a response.

    loss of a row = - (1/n) sum_{i masked} w log p(x_0^i | x_t),   n scored tokens, w = 1/t or L/l
                                                       (LLaDA, arXiv 2502.09992, Alg. 1 and Alg. 2, one draw a row)

The batch loss is the mean over rows, so it adds up over micro-batches and processes. Masks are drawn from
`keyed_generator(seed, epoch, example id)`: the same after a resume, on any number of processes and for any split into
micro-batches. Evaluation draws from one fixed key, so its curve moves with the model only.
"""

import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import EvalPrediction

from llada.adapters import wrap_with_adapters
from llada.data import Collator, column_names, prepare_rows
from llada.likelihood import elbo_draws
from llada.masking import DRAWS, draw_plan, keyed_generator
from llada.tokenizer import special_ids

logger = logging.getLogger(__name__)

EVAL_EPOCH = -1  # the epoch key of every evaluation


@dataclass
class MaskedDiffusionConfig(TrainingArguments):
    """`TrainingArguments` plus what masked diffusion adds. Defaults are LLaDA's where its papers state them.

    The default schedule is warmup-stable-decay, decaying linearly to a tenth of the learning rate.
    """

    masks: str = field(
        default="bernoulli", metadata={"help": "Masks in training: 'bernoulli' (weight 1/t) or 'exact_count' (L/l)."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of a packed or prompt-response row; default: the model's context."}
    )
    eos_tail: str = field(
        default="1",
        metadata={"help": "SFT: EOS tokens after each response that are scored as content; a number or 'batch'."},
    )
    random_length_probability: float = field(
        default=0.0, metadata={"help": "Pretraining: share of rows cut to a random length (LLaDA: 0.01)."}
    )
    drop_overlong: bool = field(default=False, metadata={"help": "Leave out rows over max_length, with a warning."})
    eval_draws: int = field(default=4, metadata={"help": "Stratified exact-count masks for each evaluated row."})
    decay_steps: float = field(
        default=0.1, metadata={"help": "Last steps of the schedule, in which it decays: a number, or a share below 1."}
    )

    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second-moment decay."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's weight decay."})
    lr_scheduler_type: str = field(default="warmup_stable_decay", metadata={"help": "A transformers scheduler name."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Kept off: the batch carries the mask keys."})
    # On, a NaN would be logged as the mean of the losses before it. The trainer stops at the first one instead.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Kept off: a NaN loss must be seen."})

    def __post_init__(self):
        # Each process collates its own rows of a stream: accelerate's default joins batches of different widths.
        self.accelerator_config = self.accelerator_config or {"dispatch_batches": False}
        super().__post_init__()
        if self.masks not in DRAWS:
            raise ValueError(f"masks={self.masks!r} is unknown: it must be one of {sorted(DRAWS)}")
        self.eos_tail = str(self.eos_tail)
        if self.eos_tail != "batch" and not self.eos_tail.isdigit():
            raise ValueError(f"eos_tail={self.eos_tail!r} must be a number of tokens or 'batch'")
        if not 0 <= self.random_length_probability <= 1:
            raise ValueError(f"random_length_probability={self.random_length_probability} must be between 0 and 1")
        if self.eval_draws < 1:
            raise ValueError(f"eval_draws={self.eval_draws} must be at least 1")


class EpochCounter(TrainerCallback):
    """Which pass over the data this is: the epoch part of the mask keys.

    `TrainerState.epoch` is a fraction of steps, which for streamed data does not reach 1 at the end of a pass.
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


def likelihood_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The loss (mean over rows), and bits per scored token and per UTF-8 byte of scored text over all rows.

    `predictions` [rows] are negative ELBOs in nats, `label_ids` [rows, 2] the scored tokens and the text's bytes.
    """
    nats, (tokens, text_bytes) = prediction.predictions.sum(), prediction.label_ids.sum(0)
    return {
        "loss": float((prediction.predictions / prediction.label_ids[:, 0]).mean()),
        "bits_per_token": float(nats / tokens / math.log(2)),
        "bits_per_byte": float(nats / max(text_bytes, 1) / math.log(2)),
    }


def row_length(max_length: int | None, config: PreTrainedConfig) -> int:
    """`max_length`, or the model's context where it is None.

    Raises:
        ValueError: `max_length` exceeds the context.
    """
    context = config.max_sequence_length
    if max_length is not None and not 1 <= max_length <= context:
        raise ValueError(f"max_length={max_length} must be between 1 and the model's context, {context}")
    return context if max_length is None else max_length


class MaskedDiffusionTrainer(Trainer):
    """Train a masked diffusion model on documents (pretraining) or on prompts and responses (SFT).

    Args:
        model: a model, or a name or path to load with `AutoModelForCausalLM` (in fp32, or as saved if only adapters are
            trained).
        train_dataset, eval_dataset: rows with the columns that `llada.data.prepare_rows` takes, or rows that it
            returned. Evaluation reports `eval_loss` (mean over rows of nats per scored token), `eval_bits_per_token`
            and `eval_bits_per_byte`; with `eos_tail="batch"` it scores one EOS, so that it does not depend on batches.
        processing_class: the tokenizer.
        peft_config: wrap the model with PEFT first; without `target_modules`, LoRA goes on every linear layer of the
            blocks (and not on the head).

    Raises:
        ValueError: the tokenizer or its ids do not fit the model, `max_length` exceeds its context, or a row cannot
            be trained on (`llada.data.DataError`).
        FloatingPointError: during training, before the optimizer moves: a loss that is not finite.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over rows: the Trainer divides it by the accumulation steps

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: MaskedDiffusionConfig,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
    ):
        if isinstance(model, str):
            dtype = torch.float32 if peft_config is None else "auto"
            model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        if processing_class is None:
            raise ValueError("MaskedDiffusionTrainer needs processing_class, the tokenizer")
        ids = special_ids(processing_class, model.config)
        max_length = row_length(args.max_length, model.config)
        if peft_config is not None:
            model = wrap_with_adapters(model, peft_config)

        def prepared(dataset, name: str):
            if dataset is None or "example_id" in column_names(dataset):
                return dataset
            with args.main_process_first(desc=f"tokenizing {name}"):
                return prepare_rows(
                    dataset, processing_class, ids, max_length, args.eos_tail, args.drop_overlong, source=name
                )

        train_dataset, eval_dataset = prepared(train_dataset, "train_dataset"), prepared(eval_dataset, "eval_dataset")
        self.mask_id = ids.mask
        self.epoch_counter = EpochCounter()
        self.eval_collator = Collator(ids.pad, ids.eos, "1" if args.eos_tail == "batch" else args.eos_tail)
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(ids.pad, ids.eos, args.eos_tail),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            compute_metrics=likelihood_metrics,
            callbacks=[self.epoch_counter, *(callbacks or [])],
            optimizers=optimizers,
        )
        self.model_accepts_loss_kwargs = False  # the same statement for releases without `loss_is_scaled_for_ga`
        warn_of_half_precision(self)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if str(getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)) == "warmup_stable_decay":
            decay = self.args.decay_steps
            steps = math.ceil(decay * num_training_steps) if decay < 1 else int(decay)
            defaults = {"num_decay_steps": steps, "decay_type": "linear", "min_lr_ratio": 0.1}
            self.args.lr_scheduler_kwargs = defaults | (self.args.lr_scheduler_kwargs or {})
        return super().create_scheduler(num_training_steps, optimizer)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        # The Trainer goes by names, which miss `ln_f`: no vector (norm, bias) is decayed.
        matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def get_eval_dataloader(self, eval_dataset=None):
        # The Trainer would apply to held-out rows what is about training batches: dropping an incomplete one, and a
        # tail that depends on the batch.
        kept = self.args.dataloader_drop_last, self.data_collator
        self.args.dataloader_drop_last, self.data_collator = False, self.eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last, self.data_collator = kept

    def negative_elbo(
        self, model: nn.Module, inputs: dict[str, Tensor], epoch: int, n: int, masks: str, stratified: bool
    ) -> tuple[Tensor, Tensor]:
        """Minus the mean over n draws of each row's ELBO, nats, and its number of scored tokens, both [B]."""
        generators = [keyed_generator(self.args.seed, epoch, key) for key in inputs["example_id"].tolist()]
        attention_BL, scored_BL = inputs["attention_mask"], inputs["scored"]
        if epoch != EVAL_EPOCH and self.args.random_length_probability:
            keep_BL = random_lengths(scored_BL.cpu(), generators, self.args.random_length_probability)
            keep_BL = keep_BL.to(scored_BL.device)
            attention_BL, scored_BL = attention_BL * keep_BL, scored_BL & keep_BL
        plan = draw_plan(scored_BL, generators, n, masks, stratified)

        def log_probs(noisy_BL: Tensor, target_BL: Tensor) -> Tensor:
            return model(input_ids=noisy_BL, attention_mask=attention_BL, target_ids=target_BL).log_probs

        return -elbo_draws(log_probs, inputs["input_ids"], plan, self.mask_id).mean(0), scored_BL.sum(-1)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        epoch = max(self.epoch_counter.epoch, 0)
        nelbo_B, length_B = self.negative_elbo(model, inputs, epoch, 1, self.args.masks, stratified=False)
        loss_B = nelbo_B / length_B
        self.stop_unless_finite(loss_B, inputs)
        return (loss_B.mean(), {"nelbo": nelbo_B}) if return_outputs else loss_B.mean()

    def stop_unless_finite(self, loss_B: Tensor, inputs: dict[str, Tensor]) -> None:
        bad = (~torch.isfinite(loss_B.detach())).nonzero()[:, 0].tolist()
        if bad:
            names = "; ".join(
                f"row {int(inputs['row'][b])} (example id {int(inputs['example_id'][b])}): {loss_B[b].item()}"
                for b in bad
            )
            raise FloatingPointError(
                f"the loss is not finite after {self.state.global_step} optimizer steps, for {len(bad)} of "
                f"{len(loss_B)} examples of the batch: {names}. Stopped here: no parameter was changed by it"
            )

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None) -> Any:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            nelbo_B, length_B = self.negative_elbo(
                model, inputs, EVAL_EPOCH, self.args.eval_draws, "exact_count", stratified=True
            )
        self.stop_unless_finite(nelbo_B, inputs)
        # No loss: the Trainer would weigh batch means, which depend on batches. `likelihood_metrics` has it by rows.
        return None, nelbo_B, torch.stack([length_B, inputs["text_bytes"]], -1)


def random_lengths(scored_BL: Tensor, generators: list[torch.Generator], probability: float) -> Tensor:
    """Which positions each row keeps: all, or with this probability the first U{1..L} (LLaDA, Alg. 1), [B, L] bool.

    Documents only (their first token is scored): a response is never cut.
    """
    keep_BL = torch.ones_like(scored_BL)
    for row, generator in enumerate(generators):
        if scored_BL[row, 0] and torch.rand((), generator=generator) < probability:
            length = int(torch.randint(1, int(scored_BL[row].sum()) + 1, (), generator=generator))
            keep_BL[row, length:] = False
    return keep_BL


def warn_of_half_precision(trainer: Trainer) -> None:
    """A step of 2.5e-5 is below half the spacing of bfloat16 at a weight of 0.02: most updates would round away."""
    half = {p.dtype for p in trainer.model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if half and not trainer.is_deepspeed_enabled:  # DeepSpeed keeps fp32 master weights
        logger.warning(
            "the trained weights are %s: small updates round away. Load the model with dtype float32 and set "
            "bf16=True, which computes in bfloat16 and keeps float32 weights",
            half.pop(),
        )
