"""Metrics of training as means over the examples since the last log line."""

import torch
from accelerate import Accelerator
from torch import Tensor


class MetricSums:
    """Sums and counts of metrics on this process, and the number of tokens that it has trained on.

    Tokens are TRL's `num_tokens`: those of the rows, prompts included and padding not, once for each time a row is in a
    step however many draws it is forwarded for.
    """

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.tokens = 0

    def add(self, metrics: dict[str, Tensor], real_N: Tensor) -> None:
        """Add the values of N examples, [N] for each metric.

        Args:
            real_N: bool, False for rows that only fill up a batch.
        """
        for name, values_N in metrics.items():
            values_N = values_N[real_N.to(values_N.device)].double()
            entry = torch.stack([values_N.sum(), torch.tensor(float(len(values_N))).to(values_N)])
            self.sums[name] = self.sums.get(name, 0) + entry

    def count_tokens(self, attention_BL: Tensor, row_weight: Tensor) -> None:
        """Count the tokens of a micro-batch, whose rows are the weighted rows, or twice these (pairs)."""
        weight_B = row_weight.repeat(len(attention_BL) // len(row_weight))
        self.tokens += int((attention_BL.sum(-1) * weight_B).sum())

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """The means over all processes since the last call, and `num_tokens`, which goes on counting."""
        tokens = torch.tensor(self.tokens, device=accelerator.device)
        logs = {"num_tokens": accelerator.reduce(tokens, "sum").item()}
        if self.sums:
            sums = accelerator.reduce(torch.stack(list(self.sums.values())), "sum")
            logs |= dict(zip(self.sums, (sums[:, 0] / sums[:, 1]).tolist(), strict=True))
            self.sums = {}
        return logs
