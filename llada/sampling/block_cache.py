"""Block caches: keys and values outside the current block change little, so its steps reuse them (approximate).

A row's first step in a block forwards the whole canvas and stores every layer's keys and values. The block's later
steps forward only some positions, whose new keys and values replace the stored ones:

    "prefix"   the block and everything after it      (Fast-dLLM, arXiv 2505.22618, prefix cache)
    "dual"     the block alone                        (ib., dual cache)

The whole canvas is forwarded again every `refresh_every` steps; 1 equals no cache up to rounding. Unlike in Fast-dLLM's
released code, padding is never attended to, and rows of a batch may be in different blocks.

Shapes: B rows, Q query positions, L canvas positions, N candidates, V vocabulary.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llada.checks import PositiveInt, check
from llada.denoiser import Denoiser, DenoiserSpec, Request
from llada.kv_cache import KeyValueCache
from llada.sampling.settings import CACHES


@dataclass
class SamplerStats:
    """The cost of `generate` calls.

    forwards: forward passes of the model (one for a guided step, possibly several if rows are in different blocks).
    query_tokens: forwarded positions, summed over rows and passes. tokens: committed tokens, summed over rows.
    """

    forwards: int = 0
    query_tokens: int = 0
    tokens: int = 0

    def add(self, other: "SamplerStats") -> None:
        """Add the counts of another call."""
        self.forwards += other.forwards
        self.query_tokens += other.query_tokens
        self.tokens += other.tokens


@dataclass
class CountedDenoiser:
    """A denoiser that counts the forward passes of the one it wraps."""

    denoiser: Denoiser
    stats: SamplerStats

    @property
    def spec(self) -> DenoiserSpec:
        return self.denoiser.spec

    def logits(self, request: Request) -> Tensor:
        self.stats.forwards += 1
        self.stats.query_tokens += request.tokens_BQ.numel()
        return self.denoiser.logits(request)

    def log_probs(self, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.denoiser.log_probs(noisy_BL, target_BL, attention_mask)


@dataclass
class CachedDenoiser:
    """A denoiser with a block cache, for one `generate` call.

    Raises:
        ValueError: the model does not support a key-value cache, or its attention is not bidirectional; `kind` or
            `refresh_every` is none of those allowed. By `logits`: the request says not for each row which it is and
            where its block is, or has a row that an earlier request did not have.
    """

    denoiser: Denoiser
    kind: str
    refresh_every: int | None = None
    kv_cache: KeyValueCache = field(default_factory=KeyValueCache)
    row_ids: tuple[int, ...] = ()
    ages: dict[int, int] = field(default_factory=dict)  # steps since a row's whole canvas was forwarded, by row id

    def __post_init__(self):
        if self.kind not in CACHES:
            raise ValueError(f"kind={self.kind!r} of a cache must be one of {CACHES}")
        check("refresh_every", self.refresh_every, PositiveInt | None)
        spec = self.denoiser.spec
        if not spec.kv_cache or spec.attention != "bidirectional":
            raise ValueError(
                f"cache={self.kind!r} needs a model with a key-value cache and bidirectional attention; this one has "
                f"kv_cache={spec.kv_cache} and attention={spec.attention!r}"
            )

    @property
    def spec(self) -> DenoiserSpec:
        return self.denoiser.spec

    def log_probs(self, noisy_BL: Tensor, target_BL: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.denoiser.log_probs(noisy_BL, target_BL, attention_mask)

    def check(self, request: Request) -> None:
        """Raise ValueError unless a request has all that the cache needs to know of its rows."""
        rows = len(request.tokens_BQ)
        for name in ("row_ids", "block_starts", "block_ends", "enters_block"):
            if len(given := getattr(request, name)) != rows:
                raise ValueError(f"a cached request of {rows} rows needs {name} of each; it has {given}")
        new = [row_id for row_id in request.row_ids if self.row_ids and row_id not in self.row_ids]
        stored = [row_id in self.ages for row_id in request.row_ids]
        if new or not all(had or enters for had, enters in zip(stored, request.enters_block, strict=True)):
            raise ValueError(f"rows {new or list(request.row_ids)} are not in the cache, which holds {self.row_ids}")

    def logits(self, request: Request) -> Tensor:
        self.check(request)
        if self.row_ids and request.row_ids != self.row_ids:  # drop the cache of finished rows
            indices = {row_id: index for index, row_id in enumerate(self.row_ids)}
            kept = [indices[row_id] for row_id in request.row_ids]
            self.kv_cache.keep(torch.tensor(kept, device=request.tokens_BQ.device))
        self.row_ids = request.row_ids
        self.kv_cache.resize(request.tokens_BQ.shape[1])
        spans = [self.span(request, row) for row in range(len(request.row_ids))]
        groups: dict[int, list[int]] = {}  # rows by the number of positions to forward
        for row, (first, last) in enumerate(spans):
            groups.setdefault(last - first, []).append(row)
        if len(groups) == 1:
            return self.forward(request, list(range(len(spans))), spans)
        row_N = request.at_BQ.nonzero()[:, 0]
        logits_NV: Tensor | None = None
        for rows in groups.values():
            found = self.forward(request, rows, spans)
            logits_NV = found.new_empty(len(row_N), found.shape[-1]) if logits_NV is None else logits_NV
            logits_NV[torch.isin(row_N, torch.tensor(rows, device=row_N.device))] = found
        assert logits_NV is not None
        return logits_NV

    def span(self, request: Request, row: int) -> tuple[int, int]:
        """The positions of a row to forward: the whole row on a refresh, else those whose keys are not cached.

        With shifted logits, the block's first token is predicted at the position before it, which is included.
        """
        row_id, length = request.row_ids[row], request.tokens_BQ.shape[1]
        age = 0 if request.enters_block[row] else self.ages[row_id] + 1
        self.ages[row_id] = age % self.refresh_every if self.refresh_every else age
        if self.ages[row_id] == 0:
            return 0, length
        start = max(0, request.block_starts[row] - self.spec.shifted)
        return start, length if self.kind == "prefix" else request.block_ends[row]

    def forward(self, request: Request, rows: list[int], spans: list[tuple[int, int]]) -> Tensor:
        """Logits at the candidates of some rows, whose spans must have the same length."""
        device, cache = request.tokens_BQ.device, self.kv_cache
        cache.rows = None if len(rows) == len(request.row_ids) else torch.tensor(rows, device=device)
        chosen = slice(None) if cache.rows is None else cache.rows
        tokens_RQ, at_RQ = request.tokens_BQ[chosen], request.at_BQ[chosen]
        cache.positions_RQ = None
        if spans[rows[0]] != (0, tokens_RQ.shape[1]):
            cache.positions_RQ = torch.tensor([list(range(*spans[row])) for row in rows], device=device)
            tokens_RQ, at_RQ = tokens_RQ.gather(1, cache.positions_RQ), at_RQ.gather(1, cache.positions_RQ)
        attention_RL = request.attention_BL[chosen]
        part = replace(request, tokens_BQ=tokens_RQ, attention_BL=attention_RL, at_BQ=at_RQ, kv_cache=cache)
        return self.denoiser.logits(part)
