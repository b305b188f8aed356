"""The data collator: pads rows of token ids to a batch and appends the EOS tail that the model is trained on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Collator:
    """Collate rows (`llada.data.formats`) to a batch, padded on the right.

    eos_tail: EOS tokens that are appended to each response and masked and scored like any token: a number, or "batch"
        (LLaDA's SFT: each response gets at least one and is filled to the longest row of the batch). A document
        (prompt_length 0) has its EOS already and gets no tail. Padding is neither attended to nor scored.

    Returns a dict of input_ids [B, L], attention_mask [B, L], response_mask [B, L] bool (the scored tokens),
    example_id [B], row [B] and text_bytes [B].
    """

    pad_id: int
    eos_id: int
    eos_tail: int | str = 0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        lengths = [row["length"] for row in rows]
        if self.eos_tail == "batch":
            ends = [max(lengths) + 1] * len(rows)
        else:
            ends = [length + int(self.eos_tail) for length in lengths]
        ends = [end if row["prompt_length"] else row["length"] for end, row in zip(ends, rows, strict=True)]
        input_ids = torch.full((len(rows), max(ends)), self.pad_id)
        for index, row in enumerate(rows):
            input_ids[index, : ends[index]] = self.eos_id
            input_ids[index, : lengths[index]] = torch.tensor(row["input_ids"])
        position_L, end_B = torch.arange(max(ends)), torch.tensor(ends)
        prompt_B = torch.tensor([row["prompt_length"] for row in rows])
        real = position_L < end_B[:, None]
        return {
            "input_ids": input_ids,
            "attention_mask": real.long(),
            "response_mask": real & (position_L >= prompt_B[:, None]),
            **{key: torch.tensor([row[key] for row in rows]) for key in ("example_id", "row", "text_bytes")},
        }
