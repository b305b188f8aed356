"""Processes and engines: what the launcher asked for is what runs, and a run leaves none behind."""

import contextlib
import gc
import os
from collections.abc import Iterator

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from transformers import Trainer, TrainingArguments

from llada.errors import RecipeError


def check_processes(args: TrainingArguments, expected: int | None) -> None:
    """Stop if the launcher did not give what it was asked for; some do not and still exit with 0.

    Raises:
        RecipeError: another number of processes than the launcher's WORLD_SIZE or `expected`.
    """
    world = args.world_size  # sets up the process group, on the device and with the backend that `args` ask for
    asked = int(os.environ.get("WORLD_SIZE", 1))
    for name, number in (("the launcher's WORLD_SIZE", asked), ("expected_processes", expected)):
        if number is not None and number != world:
            raise RecipeError(
                f"{name} is {number}, but this run has {world} processes ({args.parallel_mode.value}). On a CPU, "
                "set use_cpu in the recipe and launch with recipes/accelerate/ddp_cpu.yaml or torchrun: `accelerate "
                "launch --cpu --num_processes N` starts one process"
            )


def check_engine(trainer: Trainer) -> None:
    """Stop if the accelerate config asked for DeepSpeed or FSDP and accelerate dropped it.

    Raises:
        RecipeError: the engine that was asked for is not the one in use.
    """
    used = trainer.accelerator.distributed_type.value
    for engine in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true" and used != engine:
            raise RecipeError(
                f"the accelerate config asks for {engine}, but this run is {used}: remove use_cpu from it, or choose "
                "another config of recipes/accelerate"
            )


def leave_group(trainer: Trainer) -> None:
    """Destroy the process group: a process that exits with it open may abort after its work.

    The data-parallel wrapper has to go first. As the last owner of the group it would join the group's threads while it
    holds the interpreter's lock, which they may be waiting for: now and then a process would never end.
    """
    if torch.distributed.is_initialized():
        trainer.accelerator.free_memory()
        trainer.model_wrapped = trainer.model
        gc.collect()
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def gradients_reduced(accelerator: Accelerator, model: nn.Module, last: bool) -> Iterator[None]:
    """Keep processes from reducing gradients, and DeepSpeed from stepping, before the last backward of a step."""
    if last:
        yield
        return
    state, wanted = accelerator.gradient_state, accelerator.gradient_state.sync_gradients
    state._set_sync_gradients(False)  # accelerate has no public way: its own setter fails (1.15)
    try:
        deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        with contextlib.nullcontext() if deepspeed else accelerator.no_sync(model):
            yield
    finally:
        state._set_sync_gradients(wanted)
