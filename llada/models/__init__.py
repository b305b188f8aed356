"""The model families, under the names of the published checkpoints."""
