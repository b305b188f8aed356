"""VRPO (LLaDA 1.5, arXiv 2505.19223) on `transformers.Trainer`, with the names that TRL's DPOTrainer users know.

One step:
    draws         = masks of every response, seeded by (seed, epoch, pair, side)             (vrpo.estimators.designs)
    policy_B      = mean over draws of sum_i weight * log p_theta(y_i | masked)              ELBOs, nats, no graph
    reference_B   = the same with the reference
    loss_P        = -log sigmoid(beta (ratio of chosen - ratio of rejected)) + 0.05 SFT      (vrpo.losses.pairwise)
    gradient      = sum_B  dloss/dpolicy_B * grad policy_B, replayed draw by draw

The loss depends on the parameters only through the 2P numbers policy_B, each a mean over draws. Once they are known,
the gradient is a sum over draws with known weights: exact for every loss, and memory does not grow with n.
"""

import contextlib
import logging
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from llada.denoiser import ModuleDenoiser
from llada.diffusion.masking import MaskDraws
from llada.diffusion.random_streams import EVALUATION, second_draw
from llada.training.base import DiffusionTrainerBase, load
from llada.training.distributed import gradients_reduced
from vrpo.collator import PairCollator
from vrpo.data import PAIR_COLUMNS, prepare_pairs
from vrpo.estimators.designs import design, draw_for_pairs
from vrpo.losses.pairwise import LossInputs
from vrpo.scores import PairScores
from vrpo.training.config import VRPOConfig
from vrpo.training.metrics import BatchScores, mean_metrics, noise_of_draws, noise_of_two, pair_metrics
from vrpo.training.reference import make_reference, prepare_reference
from vrpo.training.replay import batch_elbos, replay, sloped_elbo

logger = logging.getLogger(__name__)


class VRPOTrainer(DiffusionTrainerBase):
    """Align a masked diffusion language model with preference pairs.

    Args:
        model: a model, or a name or path.
        ref_model: the reference; None with `peft_config` is the model with its adapters off, None otherwise is a frozen
            copy of the model as it is at the start.
        train_dataset, eval_dataset: preference rows in TRL's formats, or rows from `vrpo.data.prepare_pairs`.
        processing_class: the tokenizer.
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
        train_dataset=None,
        eval_dataset=None,
        processing_class: PreTrainedTokenizerBase | None = None,
        peft_config=None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers=(None, None),
    ):
        args = VRPOConfig(output_dir="vrpo_output") if args is None else args
        model = load(model, adapters=peft_config is not None)
        self.reference = make_reference(model, ref_model, peft_config)
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, peft_config, callbacks, optimizers)
        self.disable_dropout()
        self.design, self.evaluation_design = args.design(), design("vrpo", n_t=args.eval_draws)
        if self.reference is not None:
            self.reference = prepare_reference(self.reference, self.accelerator)

    metrics = staticmethod(mean_metrics)
    prepared_columns = PAIR_COLUMNS

    def disable_dropout(self) -> None:
        """Set all dropout, LoRA's included, to 0 and warn: it would differ between policy, reference and replay."""
        models = [self.model] if self.reference is None else [self.model, self.reference]
        dropouts = [m for model in models for m in model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        for module in dropouts:
            module.p = 0.0
        if dropouts:
            logger.warning(
                "%d dropout layers were set to 0: their noise would differ between the models", len(dropouts)
            )

    @staticmethod
    def prepare(dataset, tokenizer, ids, args, max_length, source):
        return prepare_pairs(
            dataset, tokenizer, ids, max_length, int(args.eos_tail), drop_overlong=args.drop_overlong,
            allow_identical=args.allow_identical, drop_invalid=args.drop_invalid, num_proc=args.dataset_num_proc,
            source=source,
        )  # fmt: skip

    @staticmethod
    def make_collator(args, ids, training):
        return PairCollator(ids.pad, ids.eos, int(args.eos_tail))

    # The loss, with a graph over all draws: the naive form of `training_step`

    def scores(self, denoiser: ModuleDenoiser, inputs: dict[str, Tensor], epoch: int) -> BatchScores:
        """ELBO draws of policy (with a graph, where gradients are enabled) and reference (without)."""
        # Evaluation always uses design vrpo, so that its curves compare between runs with different training designs.
        design = self.evaluation_design if epoch == EVALUATION else self.design
        ids = inputs["example_id"].tolist()
        policy_masks, reference_masks = draw_for_pairs(design, inputs["response_mask"], ids, self.args.seed, epoch)
        policy_SB = batch_elbos(denoiser, inputs, policy_masks)
        with torch.no_grad(), self.reference_model(denoiser.module) as reference:
            reference_SB = batch_elbos(self.denoiser(reference), inputs, reference_masks)
        return BatchScores(PairScores.split(policy_SB), PairScores.split(reference_SB), policy_masks, design)

    @contextlib.contextmanager
    def reference_model(self, model: nn.Module):
        """The reference, or the policy with its adapters off but in its wrapper, which sharding engines need."""
        if self.reference is not None:
            yield self.reference
        else:
            with self.accelerator.unwrap_model(model).disable_adapter():
                yield model

    def pair_losses(self, pairs: LossInputs, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of each pair, [P]. A non-finite score raises even if its loss is finite (at s = inf it is 0)."""
        loss = self.args.loss()
        self.check_finite(loss.beta * pairs.ratio.margin, inputs, "score")
        loss_P = loss(pairs)
        self.check_finite(loss_P, inputs)
        return loss_P

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        denoiser = self.denoiser(model)
        scores = self.scores(denoiser, inputs, self.epoch)
        loss = self.pair_losses(scores.loss_inputs(response_lengths(inputs)), inputs).mean()
        loss = loss + self.auxiliary_loss(denoiser)
        return (loss, self.metrics_of(scores, inputs)) if return_outputs else loss

    # Training: scores without a graph, then the draws replayed one at a time

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        """Add the gradient of a micro-batch of pairs to the parameters; return its share of the loss of the step."""
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = self.scores(self.denoiser(model), inputs, self.epoch)
        loss_P, slope_B = self.loss_and_slopes(scores, inputs)
        # This comes before the last backward pass, in which DeepSpeed steps the optimizer.
        metrics = self.metrics_of(scores, inputs, self.second_scores(model, inputs, scores))
        auxiliary = self.replay(model, inputs, scores.draws, slope_B)
        self.add_metrics(metrics)
        return loss_P.detach().mean() / self.current_gradient_accumulation_steps + auxiliary

    def loss_and_slopes(self, scores: BatchScores, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of each pair, [P], and d (its mean) / d (policy ELBO of each response), [2P]."""
        pairs = scores.loss_inputs(response_lengths(inputs))
        policy = pairs.policy.map(lambda elbo_P: elbo_P.requires_grad_())
        reference = scores.reference.map(lambda draws_SP: draws_SP.mean(0))
        loss_P = self.pair_losses(LossInputs(policy - reference, policy, pairs.length), inputs)
        slopes = torch.autograd.grad(loss_P.mean(), (policy.chosen, policy.rejected), materialize_grads=True)
        return loss_P, torch.cat(slopes)

    def replay(self, model: nn.Module, inputs: dict[str, Tensor], draws: MaskDraws, slope_B: Tensor) -> Tensor:
        """Add the gradient of the loss, one draw at a time; return this micro-batch's share of the auxiliary losses."""
        share = 1 / (len(draws.masked_SBL) * self.current_gradient_accumulation_steps)
        # `share` already divides by the number of micro-batches; DeepSpeed would divide by it again.
        options = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        auxiliary = torch.zeros(())

        def forward(draw: MaskDraws) -> Tensor:
            nonlocal auxiliary
            with self.compute_loss_context_manager():
                denoiser = self.denoiser(model)
                term = sloped_elbo(denoiser, inputs, draw, slope_B)
                auxiliary_loss = self.auxiliary_loss(denoiser)
                auxiliary = auxiliary + auxiliary_loss.detach() * share
                return (term + auxiliary_loss) * share

        def backward(term: Tensor) -> None:
            self.accelerator.backward(term, **options)

        replay(draws, forward, backward, partial(gradients_reduced, self.accelerator, model))
        return auxiliary

    # Metrics

    def metrics_of(
        self, scores: BatchScores, inputs: dict[str, Tensor], second: BatchScores | None = None
    ) -> dict[str, Tensor]:
        """`pair_metrics`, with the noise of the scores if the draws or a second score of the batch provide it."""
        noise = noise_of_draws(scores) if scores.has_sample_variance else None
        noise = noise_of_two(scores, second) if second is not None else noise
        return pair_metrics(scores, response_lengths(inputs), self.args.loss(), noise)

    def second_scores(self, model: nn.Module, inputs: dict[str, Tensor], scores: BatchScores) -> BatchScores | None:
        """Every `variance_steps` steps, scores with fresh masks if the draws have no sample variance; else None."""
        every = self.args.variance_steps
        if scores.has_sample_variance or not every or self.state.global_step % every:
            return None
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.scores(self.denoiser(model), inputs, second_draw(self.epoch))

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = self.scores(self.denoiser(model), inputs, EVALUATION)
            loss_P = self.pair_losses(scores.loss_inputs(response_lengths(inputs)), inputs)
        # The loss is returned as a metric of each pair: a mean of batch means would depend on the batch size.
        return None, {"loss": loss_P, **self.metrics_of(scores, inputs)}, inputs["row"]


def response_lengths(inputs: dict[str, Tensor]) -> PairScores:
    """Number of tokens of each response, [P] for each side."""
    return PairScores.split(inputs["response_mask"].sum(-1))
