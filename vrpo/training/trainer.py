"""VRPO (LLaDA 1.5, arXiv 2505.19223) on `transformers.Trainer`, with the names that TRL's DPOTrainer users know.

One step:
    plan          = draws of every response, keyed by (seed, epoch, pair, side)             (vrpo.estimators.designs)
    policy_B      = mean over draws of sum_i weight * log p_theta(y_i | masked)              ELBOs, nats, no graph
    reference_B   = the same plan under the reference
    loss_P        = -log sigmoid(beta (ratio of chosen - ratio of rejected)) + 0.05 SFT      (vrpo.losses.pairwise)
    gradient      = sum_B  dloss/dpolicy_B * grad policy_B, replayed draw by draw

The loss depends on the parameters through the 2P numbers policy_B alone, and each is a mean over draws. Once they are
known, the gradient is a sum over draws with known weights: exact for every loss, and memory does not grow with n.
"""

import contextlib
import logging
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from llada.denoiser import ModuleDenoiser
from llada.diffusion.masking import MaskPlan
from llada.training.base import EVAL_EPOCH, KeyedTrainer, load
from vrpo.data import PairCollator, prepare_pairs
from vrpo.estimators.designs import DESIGNS, Estimator, draw_pair_plans
from vrpo.losses.noise_bias import second_order_bias
from vrpo.losses.pairwise import total_loss
from vrpo.scores import SATURATED, log_ratios, ratio_variance, score_variance
from vrpo.training.config import VRPOConfig
from vrpo.training.metrics import mean_metrics
from vrpo.training.reference import make_reference, prepare_reference
from vrpo.training.replay import batch_elbos, replay, sloped_elbo

logger = logging.getLogger(__name__)


REDRAWN = -2  # the epoch of a redraw's mask keys is this minus the epoch: below every epoch and below evaluation's


@dataclass(frozen=True)
class Scores:
    """ELBO draws of one batch, [S, 2P] each, the design that drew them, and the plan of the policy."""

    policy_SB: Tensor
    reference_SB: Tensor
    plan: MaskPlan
    estimator: Estimator

    @property
    def tell_variance(self) -> bool:
        """Whether the draws themselves tell their variance: several, and independent."""
        return self.estimator.independent and self.estimator.n > 1


class VRPOTrainer(KeyedTrainer):
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
        self.estimator = args.design()
        if self.reference is not None:
            self.reference = prepare_reference(self.reference, self.accelerator)

    metrics = staticmethod(mean_metrics)

    def disable_dropout(self) -> None:
        """Dropout, LoRA's included, would differ between policy, reference and replay; said where there was any."""
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
            dataset, tokenizer, ids, max_length, args.eos_tail, args.drop_overlong, args.allow_identical, source
        )

    @staticmethod
    def make_collator(args, ids, training):
        return PairCollator(ids.pad, ids.eos, args.eos_tail)

    # The loss, with a graph over all draws: the naive form of `training_step`

    def scores(self, denoiser: ModuleDenoiser, inputs: dict[str, Tensor], epoch: int) -> Scores:
        """ELBO draws of policy (with a graph, where gradients are enabled) and reference (without)."""
        ids = inputs["example_id"].tolist()
        # Evaluation has one design, whatever training has: its curves are to show the model, and to compare.
        estimator = DESIGNS["vrpo"] if epoch == EVAL_EPOCH else self.estimator
        if epoch == EVAL_EPOCH:
            estimator = replace(estimator, n_t=self.args.eval_draws)
        policy_plan, reference_plan = draw_pair_plans(inputs["scored"], ids, estimator, self.args.seed, epoch)
        policy_SB = batch_elbos(denoiser, inputs, policy_plan)
        with torch.no_grad(), self.reference_model(denoiser.module) as reference:
            reference_SB = batch_elbos(self.denoiser(reference), inputs, reference_plan)
        return Scores(policy_SB, reference_SB, policy_plan, estimator)

    @contextlib.contextmanager
    def reference_model(self, model: nn.Module):
        """The reference; with adapters off, through the same wrapper as the policy (engines that shard need it)."""
        if self.reference is not None:
            yield self.reference
        else:
            with self.accelerator.unwrap_model(model).disable_adapter():
                yield model

    def pair_losses(self, policy_B: Tensor, reference_B: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The loss of each pair, [P]; a score that is not finite stops (its loss may be: that of s = inf is 0)."""
        args, length_B = self.args, inputs["scored"].sum(-1)
        chosen_P, rejected_P = (policy_B - reference_B).chunk(2)
        self.stop_unless_finite(args.beta * (chosen_P - rejected_P), inputs, "score")
        loss_P = total_loss(
            policy_B, reference_B, length_B, args.loss_type, args.loss_weights, args.beta, args.label_smoothing
        )
        self.stop_unless_finite(loss_P, inputs)
        return loss_P

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        denoiser = self.denoiser(model)
        scores = self.scores(denoiser, inputs, self.epoch)
        loss = self.pair_losses(scores.policy_SB.mean(0), scores.reference_SB.mean(0), inputs).mean()
        loss = loss + self.auxiliary_loss(denoiser)
        return (loss, self.pair_metrics(scores, inputs)) if return_outputs else loss

    # Training: scores without a graph, then the draws replayed one at a time

    def training_step(self, model, inputs, num_items_in_batch=None) -> Tensor:
        model.train()
        if callable(getattr(self.optimizer, "train", None)):  # schedule-free optimizers
            self.optimizer.train()
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = self.scores(self.denoiser(model), inputs, self.epoch)
        policy_B = scores.policy_SB.mean(0).requires_grad_()
        loss_P = self.pair_losses(policy_B, scores.reference_SB.mean(0), inputs)
        (slope_B,) = torch.autograd.grad(loss_P.mean(), policy_B)
        # Before the last backward, in which DeepSpeed steps the optimizer.
        noise = self.redrawn_noise(model, inputs, scores)
        share = 1 / (self.estimator.n * self.current_gradient_accumulation_steps)
        auxiliary = torch.zeros(())

        def forward(draw: MaskPlan) -> Tensor:
            nonlocal auxiliary
            with self.compute_loss_context_manager():
                denoiser = self.denoiser(model)
                term = sloped_elbo(denoiser, inputs, draw, slope_B)
                auxiliary_loss = self.auxiliary_loss(denoiser)
                auxiliary = auxiliary + auxiliary_loss.detach() * share
                return (term + auxiliary_loss) * share

        def backward(term: Tensor) -> None:
            self.accelerator.backward(term, **self.backward_options())

        replay(scores.plan, forward, backward, partial(self.synchronised_at, model))
        self.add_metrics(self.pair_metrics(scores, inputs, noise))
        return loss_P.detach().mean() / self.current_gradient_accumulation_steps + auxiliary

    @contextlib.contextmanager
    def synchronised_at(self, model: nn.Module, last: bool):
        """Keep processes from reducing gradients, and DeepSpeed from stepping, before the last backward of a step."""
        if last:
            yield
            return
        state, wanted = self.accelerator.gradient_state, self.accelerator.gradient_state.sync_gradients
        state._set_sync_gradients(False)
        try:
            with contextlib.nullcontext() if self.is_deepspeed_enabled else self.accelerator.no_sync(model):
                yield
        finally:
            state._set_sync_gradients(wanted)

    def backward_options(self) -> dict[str, bool]:
        # The share of a micro-batch is in `training_step` already; DeepSpeed would divide by it again.
        return {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}

    # Metrics, under TRL's names

    def redrawn_noise(
        self, model: nn.Module, inputs: dict[str, Tensor], scores: Scores
    ) -> tuple[Tensor, Tensor] | None:
        """Variance of each log-ratio from one other draw of the whole design, and their mean, [2P]; None unless due.

        For a single draw, and for designs whose draws depend on each other: half of the squared difference is an
        unbiased estimate. It is independent of the mean (for normal noise), where the loss's curvature is taken.
        """
        every = self.args.variance_steps
        if scores.tell_variance or not every or self.state.global_step % every:
            return None
        with torch.no_grad(), self.compute_loss_context_manager():
            other = self.scores(self.denoiser(model), inputs, REDRAWN - self.epoch)
        first_B, second_B = ((each.policy_SB - each.reference_SB).mean(0) for each in (scores, other))
        return (first_B - second_B).square() / 2, (first_B + second_B) / 2

    @torch.no_grad()
    def pair_metrics(
        self, scores: Scores, inputs: dict[str, Tensor], noise: tuple[Tensor, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """One value for each pair, [P]; rewards are beta times log-ratios, logps are ELBOs in nats.

        noise: `redrawn_noise`, where the draws are not independent and cannot tell it.
        """
        beta = self.args.beta
        chosen_P, rejected_P = log_ratios(scores.policy_SB, scores.reference_SB)
        policy_P = scores.policy_SB.mean(0).chunk(2)
        masked = scores.plan.masked_SBL.sum((0, 2)).to(chosen_P) / scores.plan.masked_SBL.shape[0]
        masked_P = (masked / inputs["scored"].sum(-1)).view(2, -1).mean(0)
        score_P = beta * (chosen_P - rejected_P)
        metrics = {
            "rewards/chosen": beta * chosen_P,
            "rewards/rejected": beta * rejected_P,
            "rewards/accuracies": (score_P > 0).to(score_P),
            "rewards/margins": score_P,
            "logps/chosen": policy_P[0],
            "logps/rejected": policy_P[1],
            "logps/accuracies": (policy_P[0] > policy_P[1]).to(score_P),
            "masked_fraction": masked_P,
            "score/saturated": (score_P.abs() > SATURATED).to(score_P),
        }
        if scores.tell_variance:
            noise = ratio_variance(scores.policy_SB, scores.reference_SB), torch.cat([chosen_P, rejected_P])
        if noise is not None:
            metrics["score/variance"] = score_variance(noise[0], beta)
            if "hinge" not in self.args.loss_type:  # a kink has no curvature
                metrics["loss/bias"] = self.bias_of_noise(*noise, inputs)
        return metrics

    def bias_of_noise(self, variance_B: Tensor, ratio_B: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """What the noise of the scores adds to the preference losses, to second order (docs/losses.md), [P]."""
        args, length_B = self.args, inputs["scored"].sum(-1)
        chosen_P, rejected_P = ratio_B.chunk(2)
        terms = [
            weight * second_order_bias(
                chosen_P, rejected_P, variance_B, length_B, name, args.beta, args.label_smoothing
            )
            for name, weight in zip(args.loss_type, args.loss_weights, strict=True)
            if name != "sft"
        ]  # fmt: skip
        return torch.stack(terms).sum(0) if terms else torch.zeros_like(chosen_P)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = self.scores(self.denoiser(model), inputs, EVAL_EPOCH)
            loss_P = self.pair_losses(scores.policy_SB.mean(0), scores.reference_SB.mean(0), inputs)
        # The loss is a metric of each pair: the Trainer would weigh batch means, which depend on batches.
        return None, {"loss": loss_P, **self.pair_metrics(scores, inputs)}, inputs["row"]
