"""Preference optimization of masked diffusion language models (VRPO, arXiv 2505.19223), built on `llada`."""

from vrpo.trainer import VRPOConfig, VRPOTrainer

__all__ = ["VRPOConfig", "VRPOTrainer"]
