"""The forward process and the likelihood: pure functions of tensors and a generator."""
