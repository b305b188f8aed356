"""Shared settings and small models. Tests are offline, single-threaded and deterministic."""

import json
import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "WANDB_MODE": "disabled"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

import pytest
import torch
from safetensors.torch import load_file

from llada import LLaDAConfig, LLaDAModelLM

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
