"""Distributed training: checks that processes and engine are those that were asked for, and cleanup."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType
from torch import nn
from transformers import Trainer, TrainingArguments

from llada.errors import RecipeError

Result = TypeVar("Result")

BUCKET = 2**23  # elements that are sent together: 32 MiB in fp32

WORLD_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPI


def check_launcher() -> None:
    """Stop if `accelerate launch` was asked for several processes and started one.

    Without a distributed config that is what it does on a CPU. It leaves a trace: for more than one process it sets
    MASTER_ADDR, and nothing says how many processes there are. ACCELERATE_DYNAMO_MODE is set by that command alone.

    Raises:
        RecipeError: the environment is that of such a launch.
    """
    launched = "ACCELERATE_DYNAMO_MODE" in os.environ and "MASTER_ADDR" in os.environ
    if launched and not any(name in os.environ for name in WORLD_SIZES):
        raise RecipeError(
            "accelerate launch was asked for several processes and started one, as it does on a CPU: add --config_file "
            "recipes/accelerate/ddp_cpu.yaml, or use torchrun. If one process is what you want, leave out "
            "--num_processes (or, in training, set expected_processes to 1): accelerate then does not set the "
            "environment variable MASTER_ADDR, by which this is noticed. `accelerate launch --quiet` leaves out the "
            "launcher's own traceback, which follows this message"
        )


def check_processes(args: TrainingArguments, expected: int | None) -> None:
    """Stop if the number of processes is not the one asked for; some launchers start fewer and still exit with 0.

    Raises:
        RecipeError: the number of processes differs from the launcher's WORLD_SIZE or from `expected`, or, where
            `expected` is None, `check_launcher` finds fewer processes than were asked for.
    """
    world = args.world_size  # this also sets up the process group with the device and backend of `args`
    asked = int(os.environ.get("WORLD_SIZE", 1))
    for name, number in (("the launcher's WORLD_SIZE", asked), ("expected_processes", expected)):
        if number is not None and number != world:
            raise RecipeError(
                f"{name} is {number}, but this run has {world} processes ({args.parallel_mode.value}). On a CPU, "
                "set use_cpu in the recipe and launch with recipes/accelerate/ddp_cpu.yaml or torchrun: `accelerate "
                "launch --cpu --num_processes N` starts one process"
            )
    if expected is None:
        check_launcher()


def check_engine(trainer: Trainer) -> None:
    """Stop if the accelerate config asked for DeepSpeed or FSDP but accelerate does not use it.

    Raises:
        RecipeError: the engine in use is not the one asked for.
    """
    used = trainer.accelerator.distributed_type.value
    for engine in ("DEEPSPEED", "FSDP"):
        if os.environ.get(f"ACCELERATE_USE_{engine}", "").lower() == "true" and used != engine:
            raise RecipeError(
                f"the accelerate config asks for {engine}, but this run is {used}: remove use_cpu from it, or choose "
                "another config of recipes/accelerate"
            )


def free_wrapper(trainer: Trainer) -> None:
    """Free a trainer's data-parallel wrapper, which would otherwise hold the process group and memory."""
    trainer.accelerator.free_memory()
    trainer.model_wrapped = trainer.model
    gc.collect()


def leave_group(trainer: Trainer) -> None:
    """Destroy the process group: a process that exits with it open may abort after its work.

    The data-parallel wrapper is freed first. Otherwise it would be the group's last owner and join the group's threads
    while it holds the interpreter lock, for which they may be waiting: now and then a process would never end.
    """
    if torch.distributed.is_initialized():
        free_wrapper(trainer)
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def on_first_process(function: Callable[[], Result]) -> Result:
    """What a function returns on the first process, on all of them: for decisions that follow from files.

    Raises:
        ValueError, OSError: of the function, on all processes.
    """
    if not torch.distributed.is_initialized():
        return function()
    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = function()
        except (ValueError, OSError) as error:
            outcome[1] = error
    torch.distributed.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether an engine shards the parameters: each of its forward passes is a collective operation."""
    return accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)


def keep_precision(accelerator: Accelerator) -> None:
    """Under FSDP2 with mixed precision, compute blocks in half precision and the rest as without an engine.

    accelerate would also round what modules return (log-probabilities are in fp32), the angles of the positions, and
    sums of gradients.
    """
    if not accelerator.is_fsdp2 or accelerator.state.fsdp_plugin.mixed_precision_policy is None:
        return
    from torch.distributed.fsdp import MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy(
        plugin.mixed_precision_policy.param_dtype, torch.float32, output_dtype=None, cast_forward_inputs=False
    )


@contextlib.contextmanager
def deepspeed_steps(accelerator: Accelerator, last: bool) -> Iterator[None]:
    """Let DeepSpeed step, as it does in a backward pass, only in the `last` one of a step.

    Engines that shard gradients reduce them in each backward pass, as each process would otherwise hold all of them.
    """
    wanted = accelerator.sync_gradients
    accelerator.sync_gradients = wanted and last
    try:
        yield
    finally:
        accelerator.sync_gradients = wanted


def reduce_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; one that a process lacks counts as 0."""
    world = torch.distributed.get_world_size()
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    buckets: dict[torch.dtype, list[list[torch.Tensor]]] = {}
    for parameter in parameters:
        found = buckets.setdefault(parameter.grad.dtype, [[]])
        if sum(gradient.numel() for gradient in found[-1]) > BUCKET:
            found.append([])
        found[-1].append(parameter.grad)
    for bucket in (bucket for found in buckets.values() for bucket in found if bucket):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        torch.distributed.all_reduce(flat)
        for gradient, mean in zip(bucket, flat.div_(world).split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(mean.view_as(gradient))
