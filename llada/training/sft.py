"""Pretraining and SFT on `transformers.Trainer`; they differ only in what is masked: whole documents, or responses.

    loss of a row = - (1/n) sum_{i masked} w log p(x_0^i | x_t),   n scored tokens, w = 1/t or L/l
                                                       (LLaDA, arXiv 2502.09992, Alg. 1 and 2, one mask per row)

The batch loss is the mean over rows, so it does not depend on the split into micro-batches and processes. Neither do
the masks, which come from `generator_for(seed, epoch, example id)` and are the same after a resume. All evaluations use
the same masks, so that the curve shows only changes of the model.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.trainer_utils import EvalPrediction

from llada.data.collator import Collator
from llada.data.formats import ROW_COLUMNS, prepare_rows
from llada.denoiser import Denoiser
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import check_mask_kind, draw_masks
from llada.diffusion.random_streams import EVALUATION, generator_for
from llada.training.base import DiffusionTrainerBase
from llada.training.config import DiffusionArguments
from llada.training.options import MaskedDiffusionOptions


@dataclass
class MaskedDiffusionConfig(MaskedDiffusionOptions, DiffusionArguments):
    """`TrainingArguments` with the options of `MaskedDiffusionOptions`.

    The default schedule is warmup-stable-decay with a linear decay to a tenth of the learning rate.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    def __post_init__(self):
        super().__post_init__()
        check_mask_kind(self.masks)
        if not 0 <= self.random_length_probability <= 1:
            raise ValueError(f"random_length_probability={self.random_length_probability} must be between 0 and 1")


def likelihood_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """The loss (nats per scored token, mean over rows), and bits per scored token and per UTF-8 byte over all rows.

    `predictions` [rows]: negative ELBOs, nats; `label_ids` [rows, 2]: numbers of scored tokens and of text bytes.
    """
    nats, (tokens, text_bytes) = prediction.predictions.sum(), prediction.label_ids.sum(0)
    return {
        "loss": float((prediction.predictions / prediction.label_ids[:, 0]).mean()),
        "bits_per_token": float(nats / tokens / math.log(2)),
        "bits_per_byte": float(nats / max(text_bytes, 1) / math.log(2)),
    }


class MaskedDiffusionTrainer(DiffusionTrainerBase):
    """Train a masked diffusion model on documents (pretraining) or on prompts and responses (SFT).

    Args:
        model: a model, or a name or path for `AutoModelForCausalLM`, which loads it in fp32 (as saved if only adapters
            are trained).
        train_dataset, eval_dataset: input rows or output rows of `llada.data.formats.prepare_rows`. Evaluation reports
            `eval_loss` (nats per scored token, mean over rows), `eval_bits_per_token` and `eval_bits_per_byte`. With
            `eos_tail="batch"` it scores one EOS for each row, so that it does not depend on the batches.
        processing_class: the tokenizer.
        peft_config: wrap the model with PEFT. Without `target_modules`, adapters go on the model's `lora_targets` (the
            linear layers of the blocks, not the head).

    Raises:
        ValueError: the tokenizer or its ids do not fit the model, `max_length` exceeds its context, or a row cannot
            be trained on (`llada.errors.DataError`).
        FloatingPointError: the loss is not finite; raised before the optimizer step.
    """

    metrics = staticmethod(likelihood_metrics)
    tags = ("trl", "sft", "llada", "masked-diffusion")
    prepared_columns = ROW_COLUMNS

    def introduction(self) -> str:
        tail = "up to the longest row" if self.args.eos_tail == "batch" else self.args.eos_tail
        return (
            f"Masked diffusion training: one {self.args.masks} mask of each row a step, rows of at most "
            f"{self.max_length} tokens, EOS tail {tail}, rate {self.args.learning_rate:g} "
            f"({self.args.lr_scheduler_type}).\nUnlike TRL's SFTTrainer: rows are never cut, documents are packed, the "
            "loss is a likelihood bound in nats per token. docs/trl.md lists all."
        )

    @staticmethod
    def prepare(dataset, tokenizer, ids, args, max_length, source):
        return prepare_rows(
            dataset, tokenizer, ids, max_length, args.eos_tail, drop_overlong=args.drop_overlong,
            drop_invalid=args.drop_invalid, num_proc=args.dataset_num_proc, source=source,
        )  # fmt: skip

    @staticmethod
    def make_collator(args, ids, training):
        single = args.eos_tail == "batch" and not training
        return Collator(ids.pad, ids.eos, "1" if single else args.eos_tail)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if str(getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)) == "warmup_stable_decay":
            decay = self.args.decay_steps
            steps = math.ceil(decay * num_training_steps) if decay < 1 else int(decay)
            defaults = {"num_decay_steps": steps, "decay_type": "linear", "min_lr_ratio": 0.1}
            self.args.lr_scheduler_kwargs = defaults | (self.args.lr_scheduler_kwargs or {})
        return super().create_scheduler(num_training_steps, optimizer)

    def negative_elbo(
        self, denoiser: Denoiser, inputs: dict[str, Tensor], epoch: int, n: int, masks: str, levels: str
    ) -> tuple[Tensor, Tensor]:
        """Each row's negative ELBO, averaged over n draws, in nats, and its number of scored tokens, both [B]."""
        generators = [generator_for(self.args.seed, epoch, key) for key in inputs["example_id"].tolist()]
        attention_BL, response_mask_BL = inputs["attention_mask"], inputs["response_mask"]
        if epoch != EVALUATION and self.args.random_length_probability:
            keep_BL = random_lengths(response_mask_BL.cpu(), generators, self.args.random_length_probability)
            keep_BL = keep_BL.to(response_mask_BL.device)
            attention_BL, response_mask_BL = attention_BL * keep_BL, response_mask_BL & keep_BL
        draws = draw_masks(response_mask_BL, generators, n, masks, levels)
        return -elbo_draws(denoiser, inputs["input_ids"], draws, attention_BL).mean(0), response_mask_BL.sum(-1)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        denoiser = self.denoiser(model)
        nelbo_B, length_B = self.negative_elbo(denoiser, inputs, self.epoch, 1, self.args.masks, "iid")
        loss_B, share_B = nelbo_B / length_B, self.share(inputs, num_items_in_batch)
        self.check_finite(loss_B, inputs)
        loss = (share_B * loss_B).sum() + self.auxiliary_loss(denoiser, share_B)
        return (loss, {"nelbo": nelbo_B}) if return_outputs else loss

    def training_step_of_rows(self, model, inputs, num_items_in_batch) -> Tensor:
        self.metric_sums.count_tokens(inputs["attention_mask"], inputs["row_weight"])
        with self.offload:
            return super().training_step_of_rows(model, inputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None) -> tuple:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            nelbo_B, length_B = self.negative_elbo(
                self.denoiser(model), inputs, EVALUATION, self.args.eval_draws, "exact_count", levels="stratified"
            )
        self.check_finite(nelbo_B, inputs)
        # Returns no loss: the Trainer would average it over batches, `likelihood_metrics` averages over rows.
        return None, nelbo_B, torch.stack([length_B, inputs["text_bytes"]], -1)


def random_lengths(response_mask_BL: Tensor, generators: list[torch.Generator], probability: float) -> Tensor:
    """The positions that each row keeps, [B, L] bool: the first U{1..L} with this probability, or all (LLaDA, Alg. 1).

    Only documents are cut (rows whose first token is scored), never responses.
    """
    keep_BL = torch.ones_like(response_mask_BL)
    for row, generator in enumerate(generators):
        if response_mask_BL[row, 0] and torch.rand((), generator=generator) < probability:
            length = int(torch.randint(1, int(response_mask_BL[row].sum()) + 1, (), generator=generator))
            keep_BL[row, length:] = False
    return keep_BL
