"""The noise of the gradient while a run trains: how much of it comes from the pairs and how much from the masks.

`vrpo.gradient_noise` has the formulas; `vrpo variance` measures the same for a model that does not train.
Every `noise_split_steps` steps, before the step's own gradient, the first pairs of its first micro-batch get the
gradients of their losses at two redraws of their masks, one pair after another and in the run's own way
(`vrpo.training.step`). These masks have random streams of their own, and the run itself stays as it is, to the last
bit.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from llada.diffusion.random_streams import noise_redraw
from llada.training.distributed import is_sharded
from llada.training.metric_sums import MetricSums
from vrpo.collator import pairs_of
from vrpo.gradient_noise import KEPT, GradientSums
from vrpo.scores import PairScores
from vrpo.training.gradients import taken
from vrpo.training.plan import BATCH_LOSSES
from vrpo.training.step import PairStep

PAIRS = 8  # of each process, at most
LEAST = 3  # pairs of all processes
KEYS = ("input_ids", "attention_mask", "response_mask", "example_id", "row", "row_weight")  # of what a step needs


class NoiseSplit(TrainerCallback, ExportableState):
    """Measurements of a run, and their place in the checkpoint.

    A single measurement is noisy: the estimates are means over all measurements since the run began. They are in the
    unit of a squared gradient of one pair's loss, and are logged once for each measurement:

    noise/estimator: variance over redraws of a pair's masks, the trace of its covariance.
    noise/between: variance between pairs of a pair's expected gradient; may be negative by chance.
    noise/signal: squared norm of the expected gradient; may be negative by chance.
    noise/estimator_share: estimator / (estimator + between), with 0 for a negative `between`; 0 if estimator is 0.
    noise/scale: (estimator + between) / signal in pairs, the gradient noise scale; likewise, and left out while the
        signal is not positive.

    A step whose first micro-batches have fewer than 3 pairs, at the end of a pass, and one with a gradient that is not
    finite are left out.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.measured_at, self.measurements, self.logged = -1, 0, 0  # a step; measurements, and those in a log line
        self.estimator = self.between = self.signal = 0.0  # means over the measurements

    def on_train_begin(self, args, state, control, **kwargs):
        name = type(self).__name__
        saved = state.stateful_callbacks.get(name) if state.global_step else None
        self.restart()
        if isinstance(saved, dict):
            vars(self).update(saved["attributes"])
        state.stateful_callbacks[name] = self.state()  # the Trainer expects it, also of a run that began without

    def state(self) -> dict:
        return {"args": {}, "attributes": dict(vars(self))}

    def measure(self, step: PairStep) -> None:
        """Measure, if it is due, at the first micro-batch of a step. All processes must call this."""
        trainer, now = step.trainer, step.trainer.state.global_step
        if now % trainer.args.noise_split_steps or now == self.measured_at:
            return
        self.measured_at = now
        with undisturbed(trainer, parameters_of(step.model)):
            found = gradient_sums(step)
        flat = found.flat.to(trainer.accelerator.device)
        found.flat = trainer.accelerator.reduce(flat, "sum").cpu()
        if found.pairs < LEAST or not found.flat.isfinite().all():
            return
        self.measurements += 1
        for name in ("estimator", "between", "signal"):
            mean = getattr(self, name)
            setattr(self, name, mean + (getattr(found, name) - mean) / self.measurements)

    def line(self) -> dict[str, float]:
        """The metrics, if there was a measurement since the last call."""
        if self.logged == self.measurements:
            return {}
        self.logged = self.measurements
        logs = {f"noise/{name}": getattr(self, name) for name in ("estimator", "between", "signal")}
        noise = self.estimator + max(self.between, 0.0)
        logs["noise/estimator_share"] = self.estimator / noise if self.estimator else 0.0
        return logs | ({"noise/scale": noise / self.signal} if self.signal > 0 else {})


def check_noise_split(trainer) -> None:
    """Raise ValueError if `noise_split_steps` is set where there is nothing to split, or no way to."""
    every = trainer.args.noise_split_steps
    if every and (obstacle := obstacle_to_noise_split(trainer)):
        raise ValueError(f"noise_split_steps={every} is not possible {obstacle}: change that, or set it to 0")


def obstacle_to_noise_split(trainer) -> str:
    """Why a run cannot split the noise of its gradient, or an empty text."""
    args = trainer.args
    if is_sharded(trainer.accelerator):
        return "with an engine that shards gradients, of which no process holds that of a single pair"
    if args.precompute_ref_log_probs:
        return "with precompute_ref_log_probs, which stores the reference's scores under other masks"
    if found := BATCH_LOSSES & set(args.loss_type):
        return f"with loss_type {min(found)}, in which a pair has no loss of its own"
    pairs = args.train_batch_size * args.world_size
    if pairs < LEAST:
        return (
            f"with per_device_train_batch_size={args.per_device_train_batch_size}, which gives {pairs} of the {LEAST} "
            "pairs over all processes that it needs"
        )
    return ""


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextlib.contextmanager
def undisturbed(trainer, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Give the parameters their gradients back, and the trainer the sums of its metrics (a router's losses add)."""
    gradients, sums = taken(parameters), trainer.metric_sums
    trainer.metric_sums = MetricSums()
    try:
        yield
    finally:
        trainer.metric_sums = sums
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def gradient_sums(step: PairStep) -> GradientSums:
    """Of the first pairs of a micro-batch, without those that fill it up; parameters have no gradients afterwards."""
    parameters = parameters_of(step.model)
    found = GradientSums(min(KEPT, sum(parameter.numel() for parameter in parameters)))
    pairs = [pair for pair in pairs_of({key: step.inputs[key] for key in KEYS}) if pair["row_weight"] > 0]
    for pair in pairs[:PAIRS]:
        found.add(*(redrawn_gradient(step, pair, redraw, parameters) for redraw in range(2)))
    return found


def redrawn_gradient(
    step: PairStep, pair: dict[str, Tensor], redraw: int, parameters: list[nn.Parameter]
) -> list[Tensor]:
    """The gradient of a pair's own loss, and of its auxiliary losses, at a redraw of its masks."""
    trainer = step.trainer
    policy, reference = trainer.masks(trainer.design, pair, noise_redraw(trainer.epoch, redraw))
    single = PairStep(trainer, step.model, pair, torch.ones_like(step.share_P[:1]), policy)
    scores: PairScores = trainer.reference_scores(step.model, pair, reference, single.forwards)
    with trainer.offload:
        single.add_gradient(scores)
    gradients = [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, taken(parameters), strict=True)
    ]
    if trainer.accelerator.scaler is not None:  # of fp16, which multiplies losses
        torch._foreach_div_(gradients, trainer.accelerator.scaler.get_scale())
    return gradients
