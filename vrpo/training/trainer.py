"""VRPO (LLaDA 1.5, arXiv 2505.19223) on `transformers.Trainer`, with the names that TRL's DPOTrainer users know.

One step:
    draws         = masks of every response, seeded by (seed, epoch, pair, side)             (vrpo.estimators.designs)
    policy_B      = mean over draws of sum_i weight * log p_theta(y_i | masked)              ELBOs, nats
    reference_B   = the same with the reference
    loss_P        = -log sigmoid(beta (ratio of chosen - ratio of rejected)) + 0.05 SFT      (vrpo.losses.pairwise)
    gradient      = sum_B  dloss/dpolicy_B * grad policy_B                                  (vrpo.training.gradients)

The loss depends on the parameters only through the 2P numbers policy_B, each a mean over draws. Once they are known,
the gradient is a sum over draws with known weights: exact for every loss, and no graph over all draws is needed.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import EvalPrediction

from llada.denoiser import ModuleDenoiser
from llada.diffusion.forwards import Forward
from llada.diffusion.likelihood import elbo_draws
from llada.diffusion.masking import MaskDraws
from llada.diffusion.random_streams import EVALUATION, second_draw
from llada.training.base import DiffusionTrainerBase
from llada.training.batching import forwards_of
from llada.training.inputs import has_adapters, name_of
from llada.training.stopwatch import REFERENCE
from vrpo.collator import PairCollator
from vrpo.data import PAIR_COLUMNS, prepare_pairs
from vrpo.estimators.designs import Design, design, draw_for_pairs
from vrpo.losses.pairwise import LossInputs
from vrpo.scores import PairScores, length_weights
from vrpo.training.config import VRPOConfig
from vrpo.training.dropout import disable_dropout
from vrpo.training.metrics import BatchScores, mean_metrics, noise_of_draws, noise_of_two, pair_metrics
from vrpo.training.noise_split import NoiseSplit, check_noise_split
from vrpo.training.own_reference import check_adapters, freeze_adapter, reference_adapters
from vrpo.training.plan import GradientPlan, check_unit_gradients
from vrpo.training.precomputed import PrecomputedReference
from vrpo.training.reference import check_precomputed, make_reference, prepare_reference, synchronization
from vrpo.training.reference_table import ReferenceTable
from vrpo.training.rules import RULES
from vrpo.training.step import PairStep


class VRPOTrainer(DiffusionTrainerBase):
    """Align a masked diffusion language model with preference pairs.

    Args:
        model: a model, or a name or path.
        ref_model: the reference. None is the model as it is at the start: with `peft_config` the model with its
            adapters off, for a model with adapters a frozen copy of them (the adapter "ref"), otherwise a frozen copy.
        data_collator: collates in place of `vrpo.collator.PairCollator`, to the same keys.
        train_dataset, eval_dataset: preference rows in TRL's formats, or rows from `vrpo.data.prepare_pairs`; a
            dataset, a stream or a list; for evaluation also a dict of them, whose keys go into the metrics' names.
        processing_class: the tokenizer; by default the one saved with the model.
        compute_metrics: gets an `EvalPrediction` whose `predictions` are our metrics of each pair, [pairs] for each
            name, and whose `label_ids` are the pairs' rows; its result is added to our metrics.
        quantization_config: quantizes a model that is given by name; needs adapters.
        peft_config: train adapters (LoRA) instead of all parameters.

    Raises:
        ValueError: settings, tokenizer, reference or rows that cannot work; each message names the option or the row.
        FloatingPointError: during training, before the optimizer moves: a loss that is not finite.
    """

    def __init__(
        self,
        model: PreTrainedModel | str,
        ref_model: PreTrainedModel | str | None = None,
        args: VRPOConfig | None = None,
        data_collator=None,
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
    ):
        if args is None:
            name = model if isinstance(model, str) else name_of(model)
            args = VRPOConfig(output_dir=f"{name.split('/')[-1] or 'model'}-VRPO")
        if not isinstance(args, VRPOConfig):
            raise TypeError(f"args must be a VRPOConfig, but is a {type(args).__name__}")
        self.ref_model = ref_model
        check_precomputed(args, train_dataset, eval_dataset)
        self.plan = GradientPlan()
        super().__init__(
            model, args, data_collator, train_dataset, eval_dataset, processing_class, compute_metrics,
            [self.plan, *(callbacks or [])], optimizers, quantization_config,
            peft_config,
        )  # fmt: skip
        check_unit_gradients(self)
        check_noise_split(self)
        self.noise_split = NoiseSplit()
        if args.noise_split_steps:
            self.add_callback(self.noise_split)
        disable_dropout(self.evaluated_models())
        if has_adapters(self.model):
            check_adapters(self.model, self.denoiser(self.model), own_reference=self.ref_model is None)
        self.design, self.evaluation_design = args.design(), design("vrpo", n_t=args.eval_draws)
        self.reference_table: ReferenceTable | None = None  # scores that are looked up, once training has begun
        if args.precompute_ref_log_probs:
            self.add_callback(PrecomputedReference(self))
        if self.ref_model is not None:
            self.ref_model = prepare_reference(self.ref_model, self.accelerator)
        if args.sync_ref_model:
            self.add_callback(synchronization(self))

    metrics = staticmethod(mean_metrics)
    prepared_columns = PAIR_COLUMNS
    tags = ("trl", "dpo", "vrpo", "llada", "masked-diffusion")
    unit = "pairs"
    rules = RULES

    def introduction(self) -> str:
        args = self.args
        losses = " + ".join(
            f"{weight:g} {name}" for name, weight in zip(args.loss_type, args.loss_weights, strict=True)
        )
        pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return (
            f"VRPO: {losses}, beta {args.beta:g}, {self.design.n} masks of each response ({args.estimator}), {pairs} "
            f"pairs a step, rate {args.learning_rate:g} ({args.lr_scheduler_type.value}).\n"
            "Unlike TRL's DPOTrainer: likelihoods are averages over masks, defaults are LLaDA 1.5's, rows are never "
            "cut. docs/trl.md lists all."
        )

    def model_loaded(self, model, peft_config, init_kwargs) -> None:
        self.ref_model = make_reference(model, self.ref_model, peft_config, init_kwargs)
        if self.ref_model is None and peft_config is None:
            freeze_adapter(model)

    def evaluated_models(self) -> list[nn.Module]:
        return [self.model] if self.ref_model is None else [self.model, self.ref_model]

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        check_precomputed(self.args, eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    @staticmethod
    def prepare(dataset, tokenizer, ids, args, max_length, source, training=True):
        return prepare_pairs(
            dataset, tokenizer, ids, max_length, int(args.eos_tail), drop_overlong=args.drop_overlong,
            allow_identical=args.allow_identical, drop_invalid=args.drop_invalid, num_proc=args.dataset_num_proc,
            source=source, allow_special_tokens=args.allow_special_tokens,
        )  # fmt: skip

    @staticmethod
    def make_collator(args, ids, training):
        return PairCollator(ids.pad, ids.eos, int(args.eos_tail))

    # The loss, with a graph over all draws: the naive form of `training_step`

    def scores(
        self, denoiser: ModuleDenoiser, inputs: dict[str, Tensor], epoch: int, without_padding: bool = False
    ) -> BatchScores:
        """ELBO draws of policy (with a graph, where gradients are enabled) and reference (without).

        without_padding: forward rows of similar length together (`forwards`).
        """
        # Evaluation always uses design vrpo, so that its curves compare between runs with different training designs.
        design = self.evaluation_design if epoch == EVALUATION else self.design
        policy_masks, reference_masks = self.masks(design, inputs, epoch)
        forwards = self.forwards(inputs, design.n) if without_padding else None
        policy, *unweighted = self.elbos(denoiser, inputs, policy_masks, self.token_weights(inputs), forwards)
        reference = self.reference_of(epoch, denoiser.module, inputs, reference_masks, forwards)
        return BatchScores(policy, reference, policy_masks, design, *unweighted)

    def masks(self, design: Design, inputs: dict[str, Tensor], epoch: int) -> tuple[MaskDraws, MaskDraws]:
        """Masks of a batch for the policy and for the reference."""
        return draw_for_pairs(design, inputs["response_mask"], inputs["example_id"].tolist(), self.args.seed, epoch)

    def forwards(self, inputs: dict[str, Tensor], draws: int) -> list[Forward]:
        """Forward passes of all rows of a batch, with hardly any padding."""
        return forwards_of(self, inputs["attention_mask"], range(draws), self.args.draws_per_forward)

    def reference_of(self, epoch: int, model: nn.Module, inputs, draws: MaskDraws, forwards=None) -> PairScores:
        """ELBO draws of the reference under the masks of a pass, scored or, if they are stored, looked up."""
        if self.reference_table is not None:
            return self.reference_table.lookup(epoch, inputs)
        return self.reference_scores(model, inputs, draws, forwards)

    def reference_scores(self, model: nn.Module, inputs, draws: MaskDraws, forwards=None) -> PairScores:
        """ELBO draws of the reference. forwards: see `elbo_draws`."""
        weights = self.token_weights(inputs)[:1]
        phase, precision = self.throughput.phase(REFERENCE), self.compute_loss_context_manager()
        with phase, torch.no_grad(), precision, self.reference_model(model) as reference:
            return self.elbos(self.denoiser(reference), inputs, draws, weights, forwards)[0]

    def token_weights(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, ...]:
        """Factors [2P, L] of the tokens in the log-ratios (`ld_alpha`), then None for the ELBO that `sft` takes."""
        alpha = self.args.ld_alpha
        return (None,) if alpha is None else (length_weights(inputs["response_mask"], alpha), None)

    def elbos(self, denoiser, inputs: dict[str, Tensor], draws: MaskDraws, weights, forwards=None) -> list[PairScores]:
        """ELBO draws of both sides for each of the token weights."""
        elbos = elbo_draws(denoiser, inputs["input_ids"], draws, inputs["attention_mask"], weights, forwards)
        return [PairScores.split(elbo_SB) for elbo_SB in (elbos if len(weights) > 1 else [elbos])]

    @contextlib.contextmanager
    def reference_model(self, model: nn.Module):
        """The reference, or the policy with its adapters off but in its wrapper, which sharding engines need."""
        if self.ref_model is not None:
            yield self.ref_model
        else:
            with reference_adapters(self.accelerator.unwrap_model(model)):
                yield model

    def pair_losses(self, pairs: LossInputs, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of each pair, [P]. A non-finite score raises even if its loss is finite (at s = inf it is 0)."""
        loss = self.args.loss()
        self.check_finite(loss.beta * pairs.ratio.margin, inputs, "score")
        real_P = inputs["row_weight"] > 0  # the others must not enter a loss that compares pairs (aot)
        parts = (part and part.map(lambda values_P: values_P[real_P]) for part in vars(pairs).values())
        loss_P = torch.zeros_like(pairs.ratio.margin).masked_scatter(real_P, loss(LossInputs(*parts)))
        self.check_finite(loss_P, inputs)
        return loss_P

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        denoiser = self.denoiser(model)
        scores = self.scores(denoiser, inputs, self.epoch)
        share_P = self.share(inputs, num_items_in_batch)
        loss = (share_P * self.pair_losses(scores.loss_inputs(response_lengths(inputs)), inputs)).sum()
        loss = loss + self.auxiliary_loss(denoiser, share_P.repeat(2) / 2)
        return (loss, self.metrics_of(scores, inputs)) if return_outputs else loss

    # Training: the same gradient without a graph over all draws (`vrpo.training.step` and `gradients`)

    def training_step_of_rows(self, model, inputs, num_items_in_batch) -> Tensor:
        """Add the gradient of a micro-batch of pairs to the parameters; return its share of the loss of the step."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        share_P = self.share(inputs, num_items_in_batch)
        policy_masks, reference_masks = self.masks(self.design, inputs, self.epoch)
        step = PairStep(self, model, inputs, share_P, policy_masks)
        if self.args.noise_split_steps:
            self.noise_split.measure(step)
        reference = self.reference_of(self.epoch, step.model, inputs, reference_masks, step.forwards)
        # This comes before the last backward pass, in which DeepSpeed steps the optimizer.
        second = self.second_scores(step.model, inputs)
        with self.offload:
            policy = [PairScores.split(elbo_SB) for elbo_SB in step.add_gradient(reference)]
        scores = BatchScores(policy[0], reference, policy_masks, self.design, *policy[1:])
        self.metric_sums.add(self.metrics_of(scores, inputs, second), share_P > 0)
        self.count(inputs)
        self.throughput.count_work(inputs, policy_masks.masked_SBL, reference_masks.masked_SBL)
        return (share_P * step.loss_P).sum() + step.auxiliary

    # Metrics

    def metrics_of(
        self, scores: BatchScores, inputs: dict[str, Tensor], second: BatchScores | None = None
    ) -> dict[str, Tensor]:
        """`pair_metrics`, with the noise of the scores if the draws or a second score of the batch provide it."""
        noise = noise_of_draws(scores) if scores.has_sample_variance else None
        noise = noise_of_two(scores, second) if second is not None else noise
        return pair_metrics(scores, response_lengths(inputs), self.args.loss(), noise)

    def second_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> BatchScores | None:
        """Every `variance_steps` steps, scores with fresh masks if the draws have no sample variance; else None.

        The stored scores of a reference are those of other masks.
        """
        every = self.args.variance_steps
        sampled = self.design.independent and self.design.n > 1
        if sampled or not every or self.state.global_step % every or self.reference_table is not None:
            return None
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.scores(self.denoiser(model), inputs, second_draw(self.epoch), without_padding=True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs or "train_loss" in logs:
            logs |= self.noise_split.line()
        super().log(logs, start_time)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = self.scores(self.denoiser(model), inputs, EVALUATION, without_padding=True)
            loss_P = self.pair_losses(scores.loss_inputs(response_lengths(inputs)), inputs)
        # The loss is returned as a metric of each pair: a mean of batch means would depend on the batch size.
        return None, {"loss": loss_P, **self.metrics_of(scores, inputs)}, inputs["row"]


def response_lengths(inputs: dict[str, Tensor]) -> PairScores:
    """Number of tokens of each response, [P] for each side."""
    return PairScores.split(inputs["response_mask"].sum(-1))
