"""Pretraining and SFT on transformers.Trainer."""
