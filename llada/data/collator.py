"""The data collator: pads rows of token ids to a batch and appends the EOS tail that the model is trained on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llada.checks import EosTail, check
from llada.data.flaws import Room
from llada.data.rows import UNSCORED, RowOut, TokenizedRows
from llada.errors import SINGULAR, DataError, PairError


@dataclass(frozen=True)
class Collator:
    """Collate rows (`llada.data.formats`) to a batch, padded on the right.

    Scored are the tokens of `labels` that are not -100; without `labels`, those after `prompt_length`.

    eos_tail: EOS tokens that are appended to each response and masked and scored like any token: a number, or "batch"
        (LLaDA's SFT: each response gets at least one and is filled to the longest row of the batch). A row with
        prompt_length 0, such as a document, has its EOS already and gets no tail. Padding is neither attended to nor
        scored.

    Returns a dict of input_ids [B, L], attention_mask [B, L], response_mask [B, L] bool (the scored tokens),
    example_id [B], row [B] and text_bytes [B]; of packed rows (`seq_lengths`) also segment_ids [B, L], which attention
    does not cross.
    """

    pad_id: int
    eos_id: int
    eos_tail: int | str = 0

    def __post_init__(self):
        check("eos_tail", str(self.eos_tail), EosTail)

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
        response_mask = real & (position_L >= prompt_B[:, None])
        segment_ids = torch.zeros_like(input_ids)
        for index, row in enumerate(rows):
            if "labels" in row:
                response_mask[index, : lengths[index]] = torch.tensor(row["labels"]) != UNSCORED
            lengths_of_segments = torch.tensor(row.get("seq_lengths") or [lengths[index]])
            numbers = torch.arange(len(lengths_of_segments)).repeat_interleave(lengths_of_segments)
            segment_ids[index, : lengths[index]] = numbers
        batch = {
            "input_ids": input_ids,
            "attention_mask": real.long(),
            "response_mask": response_mask,
            **{key: torch.tensor([row[key] for row in rows]) for key in ("example_id", "row", "text_bytes")},
        }
        return batch | ({"segment_ids": segment_ids} if "seq_lengths" in rows[0] else {})


@dataclass(frozen=True)
class CollatorOfTokens:
    """Collates rows with `input_ids` and, if not all tokens are scored, `labels`, which no preparation has seen.

    The key `row` of the batches is -1. Raises DataError on a row that cannot be trained on.
    """

    collator: Collator
    reader: TokenizedRows
    room: Room

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        return self.collator([self.read(row).columns() for row in rows])

    def read(self, given: dict[str, Any]) -> RowOut:
        try:
            row = self.reader.read(-1, given)
        except PairError as error:
            row = RowOut.flawed(-1, error, {"prompt": "input_ids", "completion": error.detail})
        flaw, detail = (row.flaw, row.flaw_detail) if row.flaw else self.room.flaw(0, len(row.input_ids))
        if flaw:
            verb, rest = flaw.split(" ", 1)
            raise DataError(
                f"a row that skip_prepare_dataset left as it is {SINGULAR[verb]} {rest} ({detail}): {given}"
            )
        return row
