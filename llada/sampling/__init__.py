"""Sampling: the denoising loop, the rules that select tokens, block caches and guidance."""
