"""Variance of preference scores, losses and gradients caused by mask sampling, and its sources."""
