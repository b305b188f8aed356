"""How a run gets its gradients: with buffers of unit gradients, or with kept graphs, as its memory allows.

The choice is made at the first step, from the memory that is free then, and stays: other rows that are forwarded
together, or twice, round otherwise. A resumed run takes it from its checkpoint.
"""

import math

import psutil
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from llada.diffusion.likelihood import row_elbos
from llada.training.batching import forwards_of
from llada.training.distributed import is_sharded

SHARE = 0.5  # of the memory that is free, for graphs or buffers
# Of all memory: graphs that need less are kept, because rows of all responses can then be forwarded together. What is
# free at the moment would let a run that is started again round otherwise.
CHEAP = 0.01
BATCH_LOSSES = {"aot", "aot_unpaired"}  # in which the slopes of a pair depend on the other pairs of its batch


class GradientPlan(TrainerCallback, ExportableState):
    """The choice, and its place in the checkpoint.

    unit_gradients: whether buffers are used for a batch, unless the graphs of all its draws may be kept.
    kept: the number of draws whose graphs are kept. kept_tokens: in its place, the tokens of all padded draws of a
        batch whose graphs may be alive at once; at least one draw's are.
    """

    def __init__(self) -> None:
        self.unit_gradients, self.kept_tokens, self.made = False, 0, False
        self.kept: int | None = None

    def kept_draws(self, draws: int, tokens: int) -> int:
        """Of how many draws of a batch the graphs are kept. tokens: of one draw of the padded batch."""
        return min(draws, max(1, self.kept_tokens // tokens) if self.kept is None else self.kept)

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__)
        if isinstance(saved, dict):
            vars(self).update(saved["attributes"])

    def state(self) -> dict:
        return {"args": {}, "attributes": dict(vars(self))}

    def make(self, step) -> None:
        """Choose, by a forward pass of the first step (`vrpo.training.step.PairStep`), and say what was chosen."""
        trainer, number, batch = step.trainer, step.number, step.inputs
        args, obstacle = trainer.args, obstacle_to_unit_gradients(trainer)
        self.made = True
        one = number == 1 or is_sharded(trainer.accelerator)  # what an engine's graph needs is not measured here
        if args.unit_gradients or args.kept_draws is not None or one:
            self.unit_gradients, self.kept = bool(args.unit_gradients), args.kept_draws or int(one)
            return
        trained = [parameter for parameter in step.model.parameters() if parameter.requires_grad]
        buffers = 2 * bytes_of(trained)
        self.kept = None
        to_come = buffers // 2 if any(parameter.grad is not None for parameter in trained) else buffers * 3 // 2
        free = int(SHARE * (free_memory(trained[0].device) - to_come))  # after gradients and AdamW's two moments
        cheap = max(buffers, CHEAP * total_memory(trained[0].device))
        attention_BL, denoiser = batch["attention_mask"], trainer.denoiser(step.model)
        rows = forwards_of(trainer, attention_BL, range(1), args.draws_per_forward)[0]
        with SavedBytes(step.model) as saved, trainer.compute_loss_context_manager():
            row_elbos(denoiser, batch["input_ids"], step.draws, rows, attention_BL, step.weights)
        token = saved.total / (len(rows) * rows.width)
        graphs = token * batch["input_ids"].numel() * number
        if graphs <= min(free, cheap):
            self.kept_tokens = int(cheap / token)
        elif not obstacle and args.unit_gradients is None and buffers <= free:
            self.unit_gradients = True
        else:
            self.kept_tokens = 2 ** int(math.log2(max(1, free / token)))  # about the same whenever it starts again
        if trainer.is_world_process_zero() and args.log_level not in ("error", "critical"):
            print(self.describe(number, batch["input_ids"].numel(), graphs, buffers, free, obstacle))

    def describe(self, draws: int, tokens: int, graphs: float, buffers: int, free: int, obstacle: str) -> str:
        """What was chosen and why, in one sentence."""
        gib = 2**30
        sizes = f"graphs of a batch {graphs / gib:.2g} GiB, buffers {buffers / gib:.2g}, free {free / gib:.2g}"
        kept = self.kept_draws(draws, tokens)
        if self.unit_gradients and kept < draws:
            return f"Gradients: one response at a time, in two buffers; no draw is forwarded twice ({sizes})."
        again = f"{draws - kept} of {draws} draws are forwarded twice" if kept < draws else "no draw is forwarded twice"
        why = f"; buffers are not possible {obstacle}" if obstacle and kept < draws else ""
        return f"Gradients: the graphs of {kept} draws are kept, {again} ({sizes}{why})."


def check_unit_gradients(trainer) -> None:
    """Raise ValueError if `unit_gradients` is set where it is not possible."""
    if trainer.args.unit_gradients and (obstacle := obstacle_to_unit_gradients(trainer)):
        raise ValueError(f"unit_gradients=True is not possible {obstacle}: leave it out")


def obstacle_to_unit_gradients(trainer) -> str:
    """Why gradients cannot be computed for one response at a time, or an empty text."""
    args = trainer.args
    if is_sharded(trainer.accelerator):
        return "with an engine that shards gradients"
    if args.ld_alpha is not None:
        return "with ld_alpha, as a response then has two ELBOs"
    if any(trainer.spec.auxiliary_losses.values()):
        return "with auxiliary losses of a router"
    if found := BATCH_LOSSES & set(args.loss_type):
        return f"with loss_type {min(found)}, which compares the pairs of a batch"
    return ""


def bytes_of(parameters: list[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def total_memory(device: torch.device) -> int:
    """Bytes of memory that a device has."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


class SavedBytes:
    """A context that counts the bytes which autograd saves in it, each storage once, without those of parameters."""

    def __init__(self, model: nn.Module):
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.total = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.count, lambda tensor: tensor)

    def count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.known.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor.detach()  # an output that is saved with its graph would keep the graph, and itself, alive

    def __enter__(self) -> "SavedBytes":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)
