"""The data collator of preference pairs, and the way back from a batch to its pairs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llada.data.collator import Collator


def pairs_of(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The pairs of a batch, each as a batch of its own; their masks are those that they have in the batch."""
    size = len(batch["example_id"])
    return [{key: v[[i, i + size]] if len(v) > size else v[[i]] for key, v in batch.items()} for i in range(size)]


@dataclass(frozen=True)
class PairCollator:
    """Collate rows into a batch of 2P sequences: the P chosen, then the P rejected, padded together on the right.

    Returns a dict of input_ids, attention_mask, response_mask (bool), each [2P, L]; example_id [P] and row [P].
    """

    pad_id: int
    eos_id: int
    eos_tail: int

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        sides = [
            {
                "input_ids": row["prompt_ids"] + row[f"{side}_ids"],
                "length": len(row["prompt_ids"]) + len(row[f"{side}_ids"]),
                "prompt_length": len(row["prompt_ids"]),
                "example_id": row["example_id"],
                "row": row["row"],
                "text_bytes": 0,
            }
            for side in ("chosen", "rejected")
            for row in rows
        ]
        batch = Collator(self.pad_id, self.eos_id, self.eos_tail)(sides)
        keys = {key: torch.tensor([row[key] for row in rows]) for key in ("example_id", "row")}
        return {key: batch[key] for key in ("input_ids", "attention_mask", "response_mask")} | keys
