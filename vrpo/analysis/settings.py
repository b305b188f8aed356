"""Settings of a variance measurement. Torch is not imported here, so that `--help` is fast."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from llada.checks import (
    NOT_EMPTY,
    NonNegativeFloat,
    NonNegativeInt,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Range,
    check,
    check_fields,
)

if TYPE_CHECKING:
    from vrpo.estimators.designs import Design
    from vrpo.losses.pairwise import PreferenceLoss

# Rows of the paper's Table 2 as (n_t, n_y, shared masks), its default first.
TABLE_2 = [(4, 1, True), (1, 1, True), (8, 1, True), (1, 4, True), (2, 2, True), (4, 1, False)]

PAIRS = 128  # the paper's number of pairs
SPLIT_REDRAWS = 4  # redraws of each pair in the split of a gradient's noise

# Parameters whose gradient is measured: the first block's up-projection (the paper's choice), the head, or all.
GRADIENTS = ("up", "head", "full")


@dataclass
class Settings:
    """What is measured; the defaults are the paper's protocol."""

    pairs: PositiveInt | None = field(
        default=None, metadata={"help": "Pairs from the top of the data; default: 128, or fewer if the data has fewer."}
    )
    batch_size: PositiveInt = field(default=16, metadata={"help": "Pairs in a batch, whose gradient is one sample."})
    repeats: Annotated[int, Range(at_least=2)] = field(default=8, metadata={"help": "Redraws of each batch."})
    budgets: Annotated[list[PositiveInt], NOT_EMPTY] = field(
        default_factory=lambda: [1, 2, 4, 8, 16], metadata={"help": "Values of n in the plot."}
    )
    designs: Annotated[list[str], NOT_EMPTY] = field(
        default_factory=lambda: ["vrpo", "loo_complementary"], metadata={"help": "Designs to plot, by name."}
    )
    gradient: Annotated[str, OneOf((*GRADIENTS, "none"))] = field(
        default="up", metadata={"help": "Parameters: 'up', 'head', 'full', 'none' (much faster)."}
    )
    loss_type: str = field(default="sigmoid", metadata={"help": "A loss of vrpo.losses.pairwise."})
    beta: PositiveFloat = field(default=0.2, metadata={"help": "Scale of the score, 1/nats."})
    label_smoothing: float = field(default=0.0, metadata={"help": "For 'robust' and 'exo_pair'."})
    source_pairs: NonNegativeInt = field(
        default=8, metadata={"help": "Pairs for the split by source: whole batches; 0: none."}
    )
    split_pairs: NonNegativeInt = field(
        default=32, metadata={"help": "Pairs for the split of the gradient's noise into pairs and masks; 0: none."}
    )
    split_repeats: Annotated[int, Range(at_least=2)] | None = field(
        default=None, metadata={"help": "Redraws of each of these pairs; default: 4, or fewer if repeats is fewer."}
    )
    pair_cost: NonNegativeFloat = field(
        default=0.0, metadata={"help": "Cost of a fresh pair in draws of a pair, for the advice; 0: pairs are free."}
    )
    epochs: PositiveInt = field(default=1, metadata={"help": "Times that each pair is trained on, for the advice."})
    noise_share: Annotated[float, Range(above=0, below=1)] = field(
        default=0.25, metadata={"help": "Share of the gradient's noise that masks may have, for the advice."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})

    def __post_init__(self):
        check_fields(self)
        if self.split_pairs in (1, 2):
            raise ValueError(
                f"split_pairs={self.split_pairs} must be 0 or at least 3: an interval leaves out one pair, and a "
                "variance needs two"
            )
        if self.split_redraws > self.repeats:
            raise ValueError(f"split_repeats={self.split_repeats} must be at most repeats={self.repeats}")
        if self.pairs is not None and self.pairs % min(self.pairs, self.batch_size):
            raise ValueError(
                f"pairs={self.pairs} must be a positive multiple of batch_size={self.batch_size}: the gradient of a "
                "smaller batch varies more"
            )
        if self.loss_type == "sft":
            raise ValueError("loss_type='sft' is no function of a score: name a preference loss of vrpo.LOSSES")
        if not self.loss().of_single_pairs:
            raise ValueError(
                f"loss_type={self.loss_type!r} sorts a batch, so that a pair has no loss of its own: name another"
            )
        self.rows()

    def sizes(self, available: int) -> tuple[int, int]:
        """Pairs to measure and pairs in a batch, for data with that many pairs (at least 1).

        Without `pairs`, they are the paper's 128 or what whole batches of the data hold; fewer pairs than a batch are
        one batch.

        Raises:
            ValueError: `pairs` is more than the data has.
        """
        if self.pairs is not None:
            if self.pairs > available:
                raise ValueError(f"{available} pairs fit, but pairs={self.pairs}: ask for fewer")
            return self.pairs, min(self.batch_size, self.pairs)
        size = min(self.batch_size, available)
        return max(1, min(PAIRS, available) // size) * size, size

    @property
    def split_redraws(self) -> int:
        """Redraws of each pair in the split of the gradient's noise."""
        return self.split_repeats or min(SPLIT_REDRAWS, self.repeats)

    def loss(self) -> "PreferenceLoss":
        """The loss whose variance is measured."""
        from vrpo.losses.pairwise import PreferenceLoss

        return PreferenceLoss((self.loss_type,), (1.0,), self.beta, self.label_smoothing)

    def rows(self) -> "list[tuple[str, Design]]":
        """Named designs, each once: the paper's rows, then `designs` at every budget (loo_complementary from n = 2)."""
        from vrpo.estimators.designs import DESIGNS, ComposedDesign, design

        for name in self.designs:
            check("designs", name, Annotated[str, OneOf(sorted(DESIGNS))])
        rows: list[tuple[str, Design]] = [("vrpo", ComposedDesign(n_t, n_y, shared)) for n_t, n_y, shared in TABLE_2]
        rows += [(name, design(name, n_t=n)) for name in self.designs for n in self.budgets]
        return list(dict.fromkeys((name, each) for name, each in rows if (name, each.n) != ("loo_complementary", 1)))


@dataclass
class TableArguments(Settings):
    """The command line of `vrpo variance`."""

    model: str | None = field(default=None, metadata={"help": "Policy: a path or a hub name."})
    ref_model: str | None = field(default=None, metadata={"help": "Reference: a path or a hub name."})
    data: str | None = field(default=None, metadata={"help": "Preference pairs in TRL's formats."})
    max_length: PositiveInt | None = field(
        default=None,
        metadata={"help": "Token limit of a side; longer pairs, like invalid ones, are left out with a warning."},
    )
    allow_special_tokens: bool = field(
        default=False, metadata={"help": "Plain text may spell special tokens, as in chats that are rendered already."}
    )
    output: Annotated[str, NOT_EMPTY] = field(
        default="runs/variance", metadata={"help": "Folder of variance.json, .csv and .png."}
    )
    overwrite: bool = field(default=False, metadata={"help": "Replace the results in output."})
    device: str = field(default="auto", metadata={"help": "A torch device, or 'auto': a GPU if there is one."})
    dtype: Annotated[str, OneOf(("auto", "float32", "bfloat16"))] = field(
        default="auto", metadata={"help": "'auto' (as saved), 'float32' or 'bfloat16'."}
    )

    def __post_init__(self):
        super().__post_init__()
        missing = [f"--{name}" for name in ("model", "ref_model", "data") if getattr(self, name) is None]
        if missing:
            raise ValueError(f"missing: {', '.join(missing)}")
        if Path(self.output, "variance.json").exists() and not self.overwrite:
            raise ValueError(f"output={self.output} holds results: set overwrite to replace them")
