"""Block caches: keys and values of tokens that have hardly changed, reused for the steps of a block (approximate).

When a row enters a block its whole canvas is forwarded and every layer's keys and values are kept; that is already the
first step. Later steps of the block forward only some positions, whose keys and values replace the old ones in place:

    "prefix"   the block and everything after it      (Fast-dLLM, arXiv 2505.22618, prefix cache)
    "dual"     the block alone                        (ib., dual cache)

`refresh_every` forwards the whole canvas again after so many steps; 1 is no cache, to rounding. Unlike in the released
code, padding stays masked, and rows of a batch may be in different blocks.

Shapes: B rows, Q query positions, L canvas positions, K key/value heads, C head size, N candidates.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from llada.guidance import Predictor, Step

CACHES = ("prefix", "dual")


@dataclass
class SamplerStats:
    """What a call cost.

    forwards: how often the model was run (a guided step is one, rows in different blocks are several); query_tokens:
    positions that it was run on, summed over rows and forwards; tokens: how many it committed, of all rows.
    """

    forwards: int = 0
    query_tokens: int = 0
    tokens: int = 0

    def add(self, other: "SamplerStats") -> None:
        """Count another call too."""
        self.forwards += other.forwards
        self.query_tokens += other.query_tokens
        self.tokens += other.tokens


def model_predictor(model: PreTrainedModel, stats: SamplerStats) -> Predictor:
    """The model as a predictor: the head runs at candidates only."""

    def predict(step: Step) -> Tensor:
        stats.forwards += 1
        stats.query_tokens += step.canvas_BL.numel()
        mask = None if step.attention_BL.all() else step.attention_BL
        return model(step.canvas_BL, attention_mask=mask, logits_at=step.at_BL).logits

    return predict


class KeyValueCache:
    """Rotated keys and values of every layer, [B, K, L, C] each; what `forward(cache=...)` reads and writes.

    rows, positions_RQ: which rows, and which of their positions, the next forward brings; positions None is all of
    them, in order.
    """

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.rows: Tensor | None = None
        self.positions_RQ: Tensor | None = None

    def merge(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the forwarded positions, and return keys and values of the whole canvas of these rows."""
        if self.rows is None and self.positions_RQ is None:
            self.kept[layer] = (key, value)
            return key, value
        # A model may lie on several devices (`device_map`): each layer's cache is where its keys are.
        rows, positions_RQ = (x if x is None else x.to(key.device) for x in (self.rows, self.positions_RQ))
        merged = []
        for kept_BKLC, new_RKQC in zip(self.kept[layer], (key, value), strict=True):
            if rows is None:
                assert positions_RQ is not None
                kept_BKLC.scatter_(2, positions_RQ[:, None, :, None].expand_as(new_RKQC), new_RKQC)
            elif positions_RQ is None:
                kept_BKLC[rows] = new_RKQC
            else:
                kept_BKLC[rows[:, None], :, positions_RQ] = new_RKQC.transpose(1, 2)
            merged.append(kept_BKLC if rows is None else kept_BKLC[rows])
        return merged[0], merged[1]

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these."""
        for layer, (key, value) in self.kept.items():
            self.kept[layer] = (key[rows.to(key.device)], value[rows.to(key.device)])

    def resize(self, length: int) -> None:
        """Make room for a canvas of another length (a negative pad cuts)."""
        for layer, (key, value) in self.kept.items():
            if key.shape[2] != length:
                more = (0, 0, 0, length - key.shape[2])
                self.kept[layer] = (F.pad(key, more), F.pad(value, more))


@dataclass
class CachedPredictor:
    """The model with a block cache. One object serves one `generate` call."""

    model: PreTrainedModel
    stats: SamplerStats
    kind: str
    refresh_every: int | None = None
    cache: KeyValueCache = field(default_factory=KeyValueCache)
    names: tuple[int, ...] = ()
    ages: dict[int, int] = field(default_factory=dict)  # steps since a row's canvas was forwarded whole

    def __call__(self, step: Step) -> Tensor:
        if self.names and step.names != self.names:  # rows that are done have left
            places = {name: index for index, name in enumerate(self.names)}
            self.cache.keep(torch.tensor([places[name] for name in step.names], device=step.canvas_BL.device))
        self.names = step.names
        self.cache.resize(step.canvas_BL.shape[1])
        spans = [self.span(step, row) for row in range(len(step.names))]
        groups: dict[int, list[int]] = {}  # rows by the number of positions to forward
        for row, (first, last) in enumerate(spans):
            groups.setdefault(last - first, []).append(row)
        if len(groups) == 1:
            return self.forward(step, list(range(len(spans))), spans)
        row_N = step.at_BL.nonzero()[:, 0]
        logits_NV: Tensor | None = None
        for rows in groups.values():
            found = self.forward(step, rows, spans)
            logits_NV = found.new_empty(len(row_N), found.shape[-1]) if logits_NV is None else logits_NV
            logits_NV[torch.isin(row_N, torch.tensor(rows, device=row_N.device))] = found
        assert logits_NV is not None
        return logits_NV

    def span(self, step: Step, row: int) -> tuple[int, int]:
        """The positions of a row to forward: all, or those that the cache does not stand for."""
        name, length = step.names[row], step.canvas_BL.shape[1]
        age = 0 if step.entered[row] else self.ages[name] + 1
        self.ages[name] = age % self.refresh_every if self.refresh_every else age
        if self.ages[name] == 0:
            return 0, length
        return step.starts[row], length if self.kind == "prefix" else step.ends[row]

    def forward(self, step: Step, rows: list[int], spans: list[tuple[int, int]]) -> Tensor:
        """Logits at the candidates of some rows, whose spans are of one length."""
        device, cache = step.canvas_BL.device, self.cache
        cache.rows = None if len(rows) == len(step.names) else torch.tensor(rows, device=device)
        at = slice(None) if cache.rows is None else cache.rows
        canvas_RL, attention_RL, at_RL = step.canvas_BL[at], step.attention_BL[at], step.at_BL[at]
        cache.positions_RQ = None
        if spans[rows[0]] != (0, canvas_RL.shape[1]):
            cache.positions_RQ = torch.tensor([list(range(*spans[row])) for row in rows], device=device)
            canvas_RL, at_RL = canvas_RL.gather(1, cache.positions_RQ), at_RL.gather(1, cache.positions_RQ)
        self.stats.forwards += 1
        self.stats.query_tokens += canvas_RL.numel()
        mask = None if attention_RL.all() else attention_RL
        return self.model(canvas_RL, attention_mask=mask, logits_at=at_RL, cache=cache).logits
