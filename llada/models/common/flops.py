"""The floating-point operations that a row needs in a model, from the sizes of its matrices.

    forward   2 N L + 4 A L^2 + 2 H m        L tokens, m of them masked (the head runs there only)
    backward  2 (N + T) L + 8 A L^2 + 2 H m (4 H m if the head is trained)

N elements of the matrices that a token is multiplied with, T of them trained, A the width of attention summed over
blocks, H elements of the head: the count of PaLM (arXiv 2204.02311, App. B), but for frozen matrices, which need no
gradient. What a run computes besides (activations again, padding, draws that are forwarded twice) is not needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class MatrixSizes:
    """What the number of operations of a row depends on.

    trained, frozen: elements of the matrices with which each token is multiplied, without the head.
    head: elements of the head; head_trained: whether its weight is trained.
    attention: the width of the queries, summed over blocks.
    adapters: whether what is trained are adapters, without which the reference computes.

    Example: 100 trained elements, a trained head of 40, attention 8 wide, and a row of 3 tokens of which 2 are masked.
    Its forward pass takes 2 x 100 x 3 + 4 x 8 x 9 + 2 x 40 x 2 = 600 + 288 + 160 = 1048 operations, its backward pass
    2096, and with the forward pass of a reference it needs 4192.
    """

    trained: int
    frozen: int
    head: int
    head_trained: bool
    attention: int
    adapters: bool = False

    @classmethod
    def of(cls, model: nn.Module) -> "MatrixSizes | None":
        """Those of a model of this package, with or without adapters; None of any other module."""
        if not all(hasattr(model, name) for name in ("active_share", "get_output_embeddings", "config")):
            return None
        head, config = model.get_output_embeddings(), model.config
        of_head, sizes = set(head.modules()), {True: 0.0, False: 0.0}
        for module in model.modules():
            if isinstance(module, nn.Linear) and module not in of_head:
                # Not the number of elements: a quantized weight packs several into one.
                sizes[module.weight.requires_grad] += module.in_features * module.out_features
            elif not isinstance(module, nn.Linear):
                for stacked in (each for each in module.parameters(recurse=False) if each.dim() == 3):  # experts
                    elements = getattr(stacked, "ds_numel", stacked.numel())  # ZeRO-3 keeps a part of them here
                    sizes[stacked.requires_grad] += model.active_share(module) * elements
        head_trained = any(weight.requires_grad for weight in head.parameters())
        return cls(
            round(sizes[True]), round(sizes[False]), config.embedding_size * config.hidden_size, head_trained,
            attention=config.hidden_size * config.num_hidden_layers, adapters=hasattr(model, "peft_config"),
        )  # fmt: skip

    def forward(self, work_3: Tensor, reference: bool = False) -> float:
        """Operations of the forward passes of rows. work_3: see `work`."""
        tokens, squares, masked = work_3.tolist()
        linear = self.frozen + (0 if reference and self.adapters else self.trained)
        return 2 * linear * tokens + 4 * self.attention * squares + 2 * self.head * masked

    def backward(self, work_3: Tensor) -> float:
        """Operations of the backward passes of rows."""
        tokens, squares, masked = work_3.tolist()
        head = 2 * self.head * (1 + self.head_trained)
        return 2 * (self.frozen + 2 * self.trained) * tokens + 8 * self.attention * squares + head * masked


def work(attention_BL: Tensor, masked_SBL: Tensor, weight_B: Tensor, segment_ids: Tensor | None = None) -> Tensor:
    """What the draws of a batch's rows add up to, [3]: tokens, squares of lengths, and masked positions.

    Args:
        weight_B: 1, or 0 for rows that only fill up a batch.
        segment_ids: [B, L], where several sequences are packed into a row: tokens attend within a run of equal ids.
    """
    lengths_B = attention_BL.sum(-1).double()
    squares_B = lengths_B.square()
    if segment_ids is not None:
        changes_BL = torch.nn.functional.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
        counts_BL = torch.zeros_like(attention_BL, dtype=torch.float64)
        counts_BL.scatter_add_(-1, changes_BL.long().cumsum(-1), attention_BL.double())
        squares_B = counts_BL.square().sum(-1)
    draws, masked_B = len(masked_SBL), masked_SBL.sum((0, 2)).to(lengths_B)
    return torch.stack([draws * lengths_B, draws * squares_B, masked_B]) @ weight_B.to(lengths_B)
