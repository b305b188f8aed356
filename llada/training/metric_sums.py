"""Metrics of training as means over the examples since the last log line."""

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricSums:
    """Sums and counts of metrics on this process, and the number of tokens that it has trained on.

    Tokens are TRL's `num_tokens`: those of the rows, prompts included and padding not, once for each time a row is in a
    step however many draws it is forwarded for.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.tokens: Tensor | int = 0

    def add(self, metrics: dict[str, Tensor], real_N: Tensor) -> None:
        """Add the values of N examples, [N] for each metric.

        Args:
            real_N: bool, False for rows that only fill up a batch.
        """
        for name, values_N in metrics.items():
            real_N = real_N.to(values_N.device)
            kept_N = torch.where(real_N, values_N.double(), 0.0)  # an index would wait for the device
            self.sums[name] = self.sums.get(name, 0) + torch.stack([kept_N.sum(), real_N.double().sum()])

    def count_tokens(self, attention_BL: Tensor, row_weight: Tensor) -> None:
        """Count the tokens of a micro-batch, whose rows are the weighted rows, or twice these (pairs)."""
        weight_B = row_weight.double().repeat(len(attention_BL) // len(row_weight))  # float32 ends at 2^24 tokens
        self.tokens = self.tokens + (attention_BL.sum(-1) * weight_B).sum()

    def total_tokens(self, accelerator: Accelerator) -> int:
        """The tokens of all processes."""
        tokens = torch.as_tensor(self.tokens, dtype=torch.float64, device=accelerator.device)
        return int(accelerator.reduce(tokens, "sum"))

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call, and `num_tokens`, which goes on counting."""
        logs: dict[str, float] = {"num_tokens": self.total_tokens(accelerator)}
        if self.sums:
            sums = accelerator.reduce(torch.stack(list(self.sums.values())), "sum")
            logs |= dict(zip(self.sums, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
            self.sums = {}
        return logs
