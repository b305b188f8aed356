"""Answers to many prompts: batched, and written so that a run that was killed can go on where it stopped."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llada.sampler import SamplerStats, generate
from llada.sampler_settings import SamplerSettings
from llada.tokenizer import Prompt, render

Settings = TypeVar("Settings", bound=SamplerSettings)


def settings_of(args: Any, kind: type[Settings]) -> Settings:
    """The sampler's part of a recipe's arguments."""
    return kind(**{name: getattr(args, name) for name in kind.__dataclass_fields__})


def left_padded(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt], pad_id: int, device
) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompts (text, or messages with an assistant turn opened), [B, P] each."""
    texts = [prompt if isinstance(prompt, str) else render(tokenizer, prompt, open_turn=True) for prompt in prompts]
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    width = max(map(len, encoded))
    ids = [[pad_id] * (width - len(row)) + row for row in encoded]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in encoded]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt], settings: SamplerSettings,
    batch_size: int, generator: Generator | None = None, stats: SamplerStats | None = None,
) -> Iterator[str]:  # fmt: skip
    """One answer to each prompt (text or messages), in order, special tokens left out.

    stats: what the calls cost is added to it.
    """
    pad_id = model.config.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    device, pending = next(model.parameters()).device, list[Prompt]()

    def flush() -> Iterator[str]:
        ids, mask = left_padded(tokenizer, pending, pad_id, device)
        canvas, cost = generate(model, ids, mask, settings, generator=generator, return_stats=True)
        if stats is not None:
            stats.forwards += cost.forwards
            stats.query_tokens += cost.query_tokens
        yield from tokenizer.batch_decode(canvas[:, ids.shape[1] :], skip_special_tokens=True)
        pending.clear()

    for prompt in prompts:
        pending.append(prompt)
        if len(pending) == batch_size:
            yield from flush()
    if pending:
        yield from flush()


class PartFiles:
    """JSONL written by several processes, each to a part of its own, and joined in order at the end.

    A row is {"index": ..., ...}. Lines are whole or not there: the last one of a killed process is dropped.
    """

    def __init__(self, output: str | Path):
        self.output = Path(output)

    def parts(self) -> list[Path]:
        return sorted(self.output.parent.glob(f"{self.output.name}.part*"))

    def done(self) -> dict[int, dict[str, Any]]:
        """Rows of all parts, by index."""
        rows: dict[int, dict[str, Any]] = {}
        for part in self.parts():
            text = part.read_text()
            for line in text[: text.rfind("\n") + 1].splitlines():
                row = json.loads(line)
                rows[row["index"]] = row
        return rows

    def append(self, process: int, rows: list[dict[str, Any]]) -> None:
        part = self.output.with_name(f"{self.output.name}.part{process}")
        if part.exists():  # what a killed process left of a line
            text = part.read_bytes()
            if text and not text.endswith(b"\n"):
                part.write_bytes(text[: text.rfind(b"\n") + 1])
        with open(part, "a") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

    def join(self) -> None:
        """Write the output, in the order of the prompts, and remove the parts."""
        rows = self.done()
        whole = self.output.with_name(self.output.name + ".tmp")
        with open(whole, "w") as file:
            for index in sorted(rows):
                row = {name: value for name, value in rows[index].items() if name != "index"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        whole.replace(self.output)
        for part in self.parts():
            part.unlink()
