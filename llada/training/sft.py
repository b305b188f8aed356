"""Pretraining and SFT on `transformers.Trainer`; they differ only in what is masked: whole documents, or responses.

    loss of a row = - (1/n) sum_{i masked} w log p(x_0^i | x_t),   n scored tokens, w = 1/t or L/l
                                                       (LLaDA, arXiv 2502.09992, Alg. 1 and 2, one mask per row)

    loss of a row = - (1/n) sum_i log p(x^i | x^<i),   of an autoregressive model (config field `causal`)

The batch loss is the mean over rows, so it does not depend on the split into micro-batches and processes. Neither do
the masks, which come from `generator_for(seed, epoch, example id)` and are the same after a resume. All evaluations use
the same masks, so that the curve shows only changes of the model.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import EvalPrediction

from llada.data.collator import Collator, CollatorOfTokens
from llada.data.flaws import Room
from llada.data.formats import prepare_rows
from llada.data.loading import column_names
from llada.data.rows import MASK_COLUMNS, ROW_COLUMNS, TokenizedRows
from llada.data.tokenizer import set_eos, set_template
from llada.denoiser import Denoiser, ModuleDenoiser
from llada.diffusion.causal import causal_log_likelihood, has_previous
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import draw_masks
from llada.diffusion.random_streams import EVALUATION, generator_for
from llada.training.base import DiffusionTrainerBase
from llada.training.batching import forwards_of
from llada.training.even_rows import WeighedCollator
from llada.training.inputs import as_datasets, name_of
from llada.training.rules import LowAdapterRate, RisingLoss
from llada.training.sft_config import MaskedDiffusionConfig


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

    An autoregressive model (config field `causal`) has its own loss, and an exact evaluation; the rest is the same.

    Args:
        model: a model, or a name or path for `AutoModelForCausalLM`, which loads it in fp32 (as saved if only adapters
            are trained).
        args: a configuration; plain `TrainingArguments` keep our defaults where they have theirs. None: the defaults,
            and an output_dir named after the model.
        train_dataset, eval_dataset: input rows or output rows of `llada.data.formats.prepare_rows`. Evaluation reports
            `eval_loss` (nats per scored token, mean over rows), `eval_bits_per_token` and `eval_bits_per_byte`. With
            `eos_tail="batch"` it scores one EOS for each row, so that it does not depend on the batches.
        processing_class: the tokenizer; by default the one saved with the model.
        compute_metrics: gets an `EvalPrediction` as `likelihood_metrics` does; its result is added to our metrics.
        compute_loss_func, preprocess_logits_for_metrics: TRL's, refused unless None: there are no logits of whole rows.
        formatting_func: makes a document of each row (of rows that are not tokenized).
        peft_config: wrap the model with PEFT. Without `target_modules`, adapters go on the model's `lora_targets` (the
            linear layers of the blocks, not the head).

    Raises:
        ValueError: the tokenizer or its ids do not fit the model, `max_length` exceeds its context, an option has no
            meaning for an autoregressive model, or a row cannot be trained on (`llada.errors.DataError`).
        FloatingPointError: the loss is not finite; raised before the optimizer step.
    """

    metrics = staticmethod(likelihood_metrics)
    tags = ("trl", "sft", "llada", "masked-diffusion")
    prepared_columns = ROW_COLUMNS
    rules = (LowAdapterRate, RisingLoss)

    def __init__(
        self,
        model: PreTrainedModel | str,
        args: TrainingArguments | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_loss_func=None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
        optimizer_cls_and_kwargs: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
        preprocess_logits_for_metrics=None,
        quantization_config=None,
        peft_config=None,
        formatting_func: Callable[[dict[str, Any]], str] | None = None,
    ):
        if args is None:
            name = model if isinstance(model, str) else name_of(model)
            args = MaskedDiffusionConfig(output_dir=f"{name.split('/')[-1] or 'model'}-SFT")
        args = MaskedDiffusionConfig.of(args)
        for name, value, instead in (
            ("compute_loss_func", compute_loss_func, "subclass the trainer and override compute_loss"),
            ("preprocess_logits_for_metrics", preprocess_logits_for_metrics, "use compute_metrics"),
        ):
            if value is not None:
                raise ValueError(
                    f"{name} is refused: it takes the logits of whole rows, and the model's head runs at masked "
                    f"positions only. Leave it out; {instead}"
                )
        if formatting_func is not None and args.completion_only_loss:
            raise ValueError(
                "formatting_func makes a document of each row, which has no completion, but completion_only_loss=True "
                "asks for one. Leave one of them out"
            )
        self.formatting_func = formatting_func
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset, processing_class, compute_metrics,
            callbacks, optimizers, quantization_config, peft_config,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )  # fmt: skip
        if self.spec.attention == "causal":
            self.args.check_causal()

    def introduction(self) -> str:
        packed = "" if self.args.packing is False else " documents (text) are packed,"
        tail = "up to the longest row" if self.args.eos_tail == "batch" else self.args.eos_tail
        kind, loss = f"Masked diffusion training: one {self.args.masks} mask of each row a step", "a likelihood bound"
        if self.spec.attention == "causal":
            kind, loss = "Autoregressive training (causal=True): each token from those before it", "the likelihood"
        return (
            f"{kind}, rows of at most {self.max_length} tokens, EOS tail {tail}, rate {self.args.learning_rate:g} "
            f"({self.args.lr_scheduler_type.value}).\nUnlike TRL's SFTTrainer: rows are never cut,{packed} the "
            f"loss is {loss} in nats per token. docs/trl.md lists all."
        )

    @staticmethod
    def set_tokenizer(tokenizer, config, args):
        if args.chat_template_path is not None:
            set_template(tokenizer, args.chat_template_path)
        if args.eos_token is not None:
            set_eos(tokenizer, config, args.eos_token)

    @staticmethod
    def prepare(dataset, tokenizer, ids, args, max_length, source, training=True):
        return prepare_rows(
            dataset, tokenizer, ids, max_length, args.eos_tail, drop_overlong=args.drop_overlong,
            drop_invalid=args.drop_invalid, num_proc=args.dataset_num_proc, source=source,
            form=args.form(training), shuffle_seed=args.seed if training and args.shuffle_dataset else None,
        )  # fmt: skip

    def prepared(self, data, name: str):
        data = as_datasets(data, name)
        if isinstance(data, Mapping) or self.prepared_columns <= set(column_names(data)):
            return super().prepared(data, name)
        if self.args.skips_preparation:
            columns = set(column_names(data))
            if self.custom_collator is None and (masks := columns & set(MASK_COLUMNS)) and "labels" not in columns:
                raise ValueError(
                    f"{name}: with skip_prepare_dataset, {sorted(masks)} are not read. Add a 'labels' column (-100 "
                    "where a token is not scored), or leave skip_prepare_dataset out"
                )
            return data
        if getattr(data, "format", {}).get("type") == "custom":
            raise ValueError(
                f"{name} has a transform (`Dataset.with_transform()`), which preparation would apply once and for all. "
                "Apply it with `Dataset.map()` first, or set dataset_kwargs={'skip_prepare_dataset': True} and let it "
                "return trainer-ready rows (input_ids, labels)"
            )
        if self.formatting_func is not None and "input_ids" not in column_names(data):
            data = formatted(data, self.formatting_func, self.args.dataset_text_field)
        return super().prepared(data, name)

    def collator(self, training: bool):
        if self.custom_collator is not None or not self.args.skips_preparation:
            return super().collator(training)
        collator, reader = (
            self.make_collator(self.args, self.ids, training),
            TokenizedRows(self.processing_class, self.ids),
        )
        return WeighedCollator(
            CollatorOfTokens(collator, reader, Room(self.max_length, 0)), self.ids.pad, self.args.pad_to_multiple_of
        )

    @staticmethod
    def make_collator(args, ids, training):
        single = args.eos_tail == "batch" and not training
        return Collator(ids.pad, ids.eos, "1" if single else args.eos_tail)

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        if str(getattr(self.args.lr_scheduler_type, "value", self.args.lr_scheduler_type)) == "warmup_stable_decay":
            decay = self.args.decay_steps
            steps = math.ceil(decay * num_training_steps) if decay < 1 else int(decay)
            defaults = {"num_decay_steps": steps, "decay_type": "linear", "min_lr_ratio": 0.1}
            given = self.args.lr_scheduler_kwargs
            self.args.lr_scheduler_kwargs = defaults | (given or {})
            try:
                return super().create_scheduler(num_training_steps, optimizer)
            finally:
                self.args.lr_scheduler_kwargs = given  # another run with these options has other steps
        return super().create_scheduler(num_training_steps, optimizer)

    def denoiser(self, model, inputs: dict[str, Tensor] | None = None) -> ModuleDenoiser:
        """The denoiser of a model, which may be wrapped, for a batch."""
        denoiser = super().denoiser(model)
        denoiser.segment_ids = (inputs or {}).get("segment_ids")
        return denoiser

    def negative_elbo(
        self, denoiser: Denoiser, inputs: dict[str, Tensor], epoch: int, n: int, masks: str, levels: str
    ) -> tuple[Tensor, Tensor]:
        """Each row's negative ELBO, averaged over n draws, in nats, and its number of scored tokens, both [B].

        Of an autoregressive model, its exact negative log-likelihood, and the number of tokens that it predicts.
        """
        generators = [generator_for(self.args.seed, epoch, key) for key in inputs["example_id"].tolist()]
        attention_BL, response_mask_BL = inputs["attention_mask"], inputs["response_mask"]
        if epoch != EVALUATION and self.args.random_length_probability:
            keep_BL = random_lengths(response_mask_BL.cpu(), generators, self.args.random_length_probability)
            keep_BL = keep_BL.to(response_mask_BL.device)
            attention_BL, response_mask_BL = attention_BL * keep_BL, response_mask_BL & keep_BL
        if self.spec.attention == "causal":
            shape, segment_ids = response_mask_BL.shape, inputs.get("segment_ids")
            scored_BL = response_mask_BL & has_previous(attention_BL, segment_ids, shape, response_mask_BL.device)
            if epoch != EVALUATION:
                self.throughput.count_work(inputs, scored_BL[None], attention_BL=attention_BL)
            values_B = causal_log_likelihood(denoiser, inputs["input_ids"], scored_BL, attention_BL)
            return -values_B, scored_BL.sum(-1).clamp(min=1)  # a row of one token has nothing to predict
        draws = draw_masks(response_mask_BL, generators, n, masks, levels)
        if epoch != EVALUATION:
            self.throughput.count_work(inputs, draws.masked_SBL, attention_BL=attention_BL)
        packed = inputs.get("segment_ids") is not None
        forwards = None if packed else forwards_of(self, attention_BL, range(n))
        elbos_SB = elbo_draws(denoiser, inputs["input_ids"], draws, attention_BL, forwards=forwards)
        return -elbos_SB.mean(0), response_mask_BL.sum(-1)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        denoiser = self.denoiser(model, inputs)
        nelbo_B, length_B = self.negative_elbo(denoiser, inputs, self.epoch, 1, self.args.masks, "iid")
        loss_B, share_B = nelbo_B / length_B, self.share(inputs, num_items_in_batch)
        self.check_finite(loss_B, inputs)
        loss = (share_B * loss_B).sum() + self.auxiliary_loss(denoiser, share_B)
        return (loss, {"nelbo": nelbo_B}) if return_outputs else loss

    def training_step_of_rows(self, model, inputs, num_items_in_batch) -> Tensor:
        self.count(inputs)
        with self.offload:
            return super().training_step_of_rows(model, inputs, num_items_in_batch)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None) -> tuple:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            nelbo_B, length_B = self.negative_elbo(
                self.denoiser(model, inputs),
                inputs,
                EVALUATION,
                self.args.eval_draws,
                "exact_count",
                levels="stratified",
            )
        self.check_finite(nelbo_B, inputs)
        # Returns no loss: the Trainer would average it over batches, `likelihood_metrics` averages over rows.
        # An autoregressive model does not predict a document's first token, whose bytes are taken off by share.
        bytes_B = inputs["text_bytes"] * length_B // inputs["response_mask"].sum(-1).clamp(min=1)
        return None, nelbo_B, torch.stack([length_B, bytes_B], -1)


def formatted(data, formatting_func: Callable[[dict[str, Any]], str], column: str):
    """Documents in `column`, which the function makes of each row.

    Raises:
        TypeError: the function returns something else than a string.
    """

    def document(row: dict[str, Any]) -> dict[str, str]:
        text = formatting_func(row)
        if not isinstance(text, str):
            raise TypeError(f"formatting_func must return the text of one row, but returned {text!r}")
        return {column: text}

    return data.map(document, remove_columns=column_names(data))


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
