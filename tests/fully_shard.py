"""Trainers under FSDP2 on two processes of a CPU, for the workers of `test_fully_shard.py`.

accelerate turns FSDP into data parallelism on a CPU. Here it is made to take its FSDP2 branch, in which torch's
`fully_shard` shards parameters, gradients and optimizer state over gloo.
"""

from functools import cache, partial
from pathlib import Path

import test_sft
import test_vrpo_trainer
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from peft import LoraConfig
from torch.distributed.fsdp import FSDPModule

start = AcceleratorState.__init__


def start_sharded(state: AcceleratorState, *args, **kwargs) -> None:
    start(state, *args, **kwargs)
    if state.distributed_type == DistributedType.MULTI_CPU:  # again each time
        state.distributed_type = DistributedType.FSDP
        state.fsdp_plugin = plugin(state.mixed_precision)


@cache
def plugin(mixed_precision: str) -> FullyShardedDataParallelPlugin:
    found = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LLaDABlock"],
        cpu_ram_efficient_loading=False,
    )  # fmt: skip
    if mixed_precision != "no":
        found.set_mixed_precision(mixed_precision)
    return found


def trainer(folder, dtype, stage="vrpo", lora=False, resume=False, **changes):
    """A trainer of `test_vrpo_trainer` or `test_sft`, which saves its model in `folder`/model when training has ended.

    lora: train adapters of rank 2. resume: from the newest checkpoint. Checks that each block has been sharded, and
    that log-probabilities are not rounded to the precision of the blocks.
    """
    AcceleratorState.__init__ = start_sharded
    make = {"vrpo": test_vrpo_trainer.trainer, "sft": test_sft.trainer}[stage]
    if lora:
        changes["peft_config"] = LoraConfig(r=2, lora_alpha=4)
    run = make(folder, dtype, **changes)
    assert run.accelerator.is_fsdp2
    train = partial(run.train, resume_from_checkpoint=True) if resume else run.train

    def train_and_save():
        train()
        for model in filter(None, (run.model_wrapped, getattr(run, "ref_model", None))):
            assert sum(isinstance(module, FSDPModule) for module in model.modules()) >= 3
            with torch.no_grad():
                found = model(torch.tensor([[5, 39, 7]]), target_ids=torch.tensor([[-100, 6, -100]])).log_probs
            assert found.dtype == (torch.float32 if changes.get("bf16") else dtype)
        run.save_model(str(Path(folder) / "model"))

    run.train = train_and_save
    return run
