"""Shared settings and small models. Tests are offline, single-threaded and deterministic."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

import pytest
import torch
from safetensors.torch import load_file

from llada import LLaDAConfig, LLaDAModelLM, LLaDAMoEConfig, LLaDAMoEModelLM

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "tests" / "fixtures"  # outputs of the reference implementations on small random weights
SHARED = ROOT.parent / "shared"  # material that is not part of the repository


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the directory ../shared, which is not part of the repository")
    return SHARED


def reference_model(name: str) -> LLaDAModelLM:
    """A reference model in fp32: 'dense_mha' (LLaDA-8B in small) or 'dense_gqa' (grouped queries, qkv bias)."""
    model = LLaDAModelLM(LLaDAConfig(**json.loads((FIXTURES / f"{name}.json").read_text())["config"]))
    model.load_state_dict(load_file(FIXTURES / f"{name}.weights.safetensors"))
    return model.eval()


def tiny_config(**changes) -> LLaDAConfig:
    fields = dict(d_model=32, n_layers=2, n_heads=4, n_kv_heads=2, mlp_hidden_size=48, vocab_size=40, rope_theta=1e4)
    ids = dict(max_sequence_length=64, mask_token_id=39, eos_token_id=1, pad_token_id=0, eot_token_id=2)
    return LLaDAConfig(**(fields | ids | changes))


def tiny_model(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> LLaDAModelLM:
    torch.manual_seed(seed)
    return LLaDAModelLM(tiny_config(**changes)).to(dtype).eval()


def tiny_moe(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> LLaDAMoEModelLM:
    fields = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=40, rope_theta=1e4)
    fields |= dict(num_experts=4, num_experts_per_tok=2, expert_intermediate_size=24, dense_intermediate_size=48)
    fields |= dict(max_position_embeddings=64, mask_token_id=39, eos_token_id=1, pad_token_id=0, eot_token_id=2)
    torch.manual_seed(seed)
    return LLaDAMoEModelLM(LLaDAMoEConfig(**(fields | changes))).to(dtype).eval()


def load_script(name: str):
    """A recipe or example as a module, by its path: `recipes/align.py` has the name of the package."""
    spec = importlib.util.spec_from_file_location(name.replace("/", "_"), ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


class Recording:
    """Mixed into a trainer, keeps the loss (the Trainer logs it in float32) and the gradient norm of each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.losses: dict[int, float] = {}
        self.norms: list[float] = []

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)  # this micro-batch's share of the step's loss
        shared = loss.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(shared)
            shared /= torch.distributed.get_world_size()
        step = self.state.global_step
        self.losses[step] = self.losses.get(step, 0.0) + shared.item()
        return loss

    def log(self, logs, *args, **kwargs):
        if "grad_norm" in logs:
            self.norms.append(logs["grad_norm"])
        super().log(logs, *args, **kwargs)


def trajectory(run, **kwargs) -> torch.Tensor:
    """Train a recording trainer; [steps, 2] loss and gradient norm."""
    run.train(**kwargs)
    return torch.tensor([list(run.losses.values()), run.norms], dtype=torch.float64).T


WORKER = """
import gc, sys, torch
from safetensors.torch import save_file
sys.path.insert(0, {tests!r})
from conftest import trajectory
from {module} import trainer
rows = trajectory(trainer({out!r}, {dtype}, ddp_backend="gloo", **{settings!r}))
torch.distributed.barrier()
if torch.distributed.get_rank() == 0:
    save_file({{"rows": rows.contiguous()}}, {out!r} + "/rows.safetensors")
gc.collect()  # the data-parallel wrapper, before the group (llada.training.distributed.leave_group)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def two_processes(folder: Path, module: str, dtype: torch.dtype, **settings) -> torch.Tensor:
    """The trajectory of `module`'s trainer on two processes (DDP, gloo)."""
    script = folder / "worker.py"
    tests, out = str(ROOT / "tests"), str(folder)
    script.write_text(WORKER.format(tests=tests, module=module, out=out, dtype=dtype, settings=settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert (folder / "rows.safetensors").exists(), result.stderr[-3000:]
    return load_file(folder / "rows.safetensors")["rows"]
