"""Preference optimization of masked diffusion language models (VRPO, arXiv 2505.19223), built on `llada`."""

from vrpo.config import VRPOConfig
from vrpo.trainer import VRPOTrainer

__all__ = ["VRPOConfig", "VRPOTrainer"]
