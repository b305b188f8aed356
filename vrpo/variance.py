"""The variance table of a checkpoint: what its preference scores, losses and gradients owe to the draws.

    python -m vrpo.variance --model POLICY --ref_model REFERENCE --data PAIRS.jsonl

The rows are those of the paper's ablation (LLaDA 1.5, arXiv 2505.19223, Table 2: (n_t, n_y, coupled)), then `vrpo` and
`cpl` at the budgets of the plot; the protocol is the paper's (ib., D.5: 128 pairs, batches of 16, 8 repeats).
Variances are over repeats, averaged over pairs (score, loss) or over batches (gradient: total variance over the named
parameters of the gradient of the batch's mean loss), with jackknife 95% intervals over pairs or batches.
"""

import csv
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, HfArgumentParser

import llada  # noqa: F401  (registers the models)
from llada.data import load_rows
from llada.keyed_trainer import row_length
from llada.tokenizer import load_tokenizer, special_ids
from vrpo.data import PairCollator, prepare_pairs
from vrpo.diagnostics import (
    SATURATED,
    correlation,
    covariances,
    jackknife,
    loss_bias,
    loss_of,
    split_bernoulli,
    split_exact_count,
)
from vrpo.estimators import Estimator, design
from vrpo.losses import LOSSES, check_loss_settings
from vrpo.redraw import Batch, banks, planner, redrawn_elbos, redrawn_gradients
from vrpo.reference import make_reference
from vrpo.report import draw_variance, print_variance

# The paper's rows, its default first.
TABLE_2 = [(4, 1, True), (1, 1, True), (8, 1, True), (1, 4, True), (2, 2, True), (4, 1, False)]
# Parameters whose gradient is measured: the head, the first block's up-projection (the paper's choice), or all.
GRADIENTS = {"head": "transformer.ff_out.", "up": "blocks.0.up_proj.", "full": ""}


@dataclass
class Settings:
    """How much is measured; the defaults are the paper's protocol."""

    pairs: int = field(default=128, metadata={"help": "Pairs from the top of the data."})
    batch_size: int = field(default=16, metadata={"help": "Pairs of a batch, whose gradient is one sample."})
    repeats: int = field(default=8, metadata={"help": "Redraws of each batch."})
    budgets: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16], metadata={"help": "n of the plot."})
    gradient: str = field(default="up", metadata={"help": "'up', 'head', 'full', or 'none' (much faster)."})
    loss_type: str = field(default="sigmoid", metadata={"help": "A loss of vrpo.losses."})
    beta: float = field(default=0.2, metadata={"help": "Scale of the score, 1/nats."})
    label_smoothing: float = field(default=0.0, metadata={"help": "For 'robust' and 'exo_pair'."})
    bank_pairs: int = field(default=8, metadata={"help": "Pairs, in whole batches, to split by source (0: none)."})
    seed: int = field(default=0, metadata={"help": "Seed of the draws."})

    def __post_init__(self):
        if self.gradient not in {*GRADIENTS, "none"}:
            raise ValueError(f"gradient={self.gradient!r} must be one of {[*GRADIENTS, 'none']}")
        if self.repeats < 2:
            raise ValueError(f"repeats={self.repeats} must be at least 2: a variance needs two draws")
        if self.pairs < 1 or self.batch_size < 1 or self.pairs % self.batch_size:
            raise ValueError(
                f"pairs={self.pairs} must be a positive multiple of batch_size={self.batch_size}: the gradient of a "
                "smaller batch varies more"
            )
        if not self.budgets or min(self.budgets) < 1 or self.bank_pairs < 0:
            raise ValueError(f"budgets={self.budgets} must be at least 1, and bank_pairs={self.bank_pairs} at least 0")
        if self.loss_type not in LOSSES:
            raise ValueError(f"loss_type={self.loss_type!r} is unknown: it must be one of {sorted(LOSSES)}")
        check_loss_settings([self.loss_type], [1.0], self.beta, self.label_smoothing)

    def rows(self) -> list[tuple[str, Estimator]]:
        """Named designs, each once: the paper's rows, then vrpo and cpl at every budget."""
        rows = [("vrpo", Estimator(n_t, n_y, coupled)) for n_t, n_y, coupled in TABLE_2]
        rows += [(name, design(name, n_t=n)) for name in ("vrpo", "cpl") for n in self.budgets]
        return list(dict.fromkeys((name, estimator) for name, estimator in rows if (name, estimator.n) != ("cpl", 1)))


def measure(
    policy: nn.Module,
    reference: nn.Module,
    batches: list[Batch],
    settings: Settings,
    mask_id: int,
    tick: Callable[[], None] = lambda: None,
) -> dict:
    """Every row's numbers, and what they are made of; see `print_variance` for how they read.

    Args:
        batches: from `PairCollator`, on the models' device.
        tick: called after each batch of each row (there are `len(batches) * len(settings.rows())`).

    Returns:
        {"rows": one dict a design (name, n_t, n_y, coupled, n, score, loss, gradient, bias, saturated; intervals as
        {value, low, high}), "correlation": ..., "sources": shares of a single draw's variance}.
    """
    parameters = [
        parameter for name, parameter in policy.named_parameters()
        if settings.gradient != "none" and GRADIENTS[settings.gradient] in name
    ]  # fmt: skip
    if settings.gradient != "none" and not parameters:
        raise ValueError(f"gradient={settings.gradient!r}: the model has no parameter '{GRADIENTS[settings.gradient]}'")
    rows, moments = [], []
    for name, estimator in settings.rows():
        scores, losses, bias, saturated, gradients = [], [], [], [], []
        for batch in batches:
            draw, redraws = planner(batch, estimator, settings.seed), range(settings.repeats)
            values = redrawn_elbos(policy, reference, batch, draw, redraws, mask_id)
            if (name, estimator) == ("vrpo", Estimator(4)):
                moments.append(torch.stack(covariances(*values), -1))
            chosen_RP, rejected_RP = (values[0] - values[1]).chunk(2, dim=1)
            lengths = batch["scored"].sum(-1).cpu()
            loss = settings.loss_type, settings.beta, settings.label_smoothing
            score_RP = settings.beta * (chosen_RP - rejected_RP)
            scores.append(score_RP.var(0))
            losses.append(loss_of(chosen_RP, rejected_RP, lengths, *loss).var(0))
            bias.append(loss_bias(chosen_RP, rejected_RP, lengths, *loss))
            saturated.append((score_RP.abs() > SATURATED).double().mean(0))
            if parameters:
                slope = slopes(chosen_RP, rejected_RP, lengths, *loss)
                noise = redrawn_gradients(policy, batch, draw, redraws, mask_id, parameters, slope)
                gradients.append(noise.variance)
            tick()
        row: dict = {"name": name, **asdict(estimator), "n": estimator.n}
        row |= {
            key: interval(torch.cat(values))
            for key, values in {"score": scores, "loss": losses, "bias": bias, "saturated": saturated}.items()
        }
        row["gradient"] = interval(torch.tensor(gradients, dtype=torch.float64)) if gradients else None
        rows.append(row)
    return {
        "rows": rows,
        "correlation": interval(torch.cat(moments), correlation),
        "sources": sources(policy, reference, batches, settings, mask_id) if settings.bank_pairs else None,
    }


def interval(values: Tensor, statistic: Callable[[Tensor], Tensor] = torch.mean) -> dict[str, float | None]:
    """A statistic over items with its interval, as JSON has it: no ends for a single item."""
    if len(values) < 2:
        return {"value": float(statistic(values)), "low": None, "high": None}
    return asdict(jackknife(statistic, values))


def slopes(chosen_RP, rejected_RP, length_B, loss_type: str, beta: float, label_smoothing: float) -> Tensor:
    """d (mean loss of the batch) / d (policy ELBO of each response) at each redraw's scores, [R, 2P]."""
    sides = [side.clone().requires_grad_() for side in (chosen_RP, rejected_RP)]
    loss = loss_of(sides[0], sides[1], length_B, loss_type, beta, label_smoothing).mean(1)
    return torch.cat(torch.autograd.grad(loss.sum(), sides), 1)


def sources(policy, reference, batches: list[Batch], settings: Settings, mask_id: int) -> dict:
    """Variance of a single draw's score in the L/l and the 1/t form, and the share of each source, over pairs."""
    parts: dict[str, list[list[float]]] = {"L/l": [], "1/t": []}
    for batch in batches:
        size = len(batch["example_id"])
        if len(parts["L/l"]) < settings.bank_pairs:
            found = banks(policy, reference, batch, counts=24, masks=16, seed=settings.seed, mask_id=mask_id)
            for chosen, rejected in zip(found[:size], found[size:], strict=True):
                exact = [split_exact_count(bank) for bank in (chosen, rejected)]
                floored = [split_bernoulli(bank) for bank in (chosen, rejected)]
                # Where the count is drawn, it is the level.
                parts["L/l"].append([sum(s.level for s in exact), sum(s.pattern for s in exact)])
                parts["1/t"].append([sum(getattr(s, part) for s in floored) for part in ("level", "count", "pattern")])
    shares = {}
    for form, names in (("L/l", ("count", "pattern")), ("1/t", ("level", "count", "pattern"))):
        part_PK = settings.beta**2 * torch.tensor(parts[form], dtype=torch.float64)
        shares[form] = {"variance": interval(part_PK.sum(-1))} | {
            name: interval(part_PK, partial(share, k)) for k, name in enumerate(names) if part_PK.any()
        }
    return shares


def share(column: int, part_PK: Tensor) -> Tensor:
    return part_PK[:, column].sum() / part_PK.sum()


@dataclass
class Arguments(Settings):
    """The command line of `python -m vrpo.variance`."""

    model: str | None = field(default=None, metadata={"help": "Policy: a path or a hub name."})
    ref_model: str | None = field(default=None, metadata={"help": "Reference: a path or a hub name."})
    data: str | None = field(default=None, metadata={"help": "Preference pairs in TRL's formats."})
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a side; longer pairs are left out."})
    output: str = field(default="runs/variance", metadata={"help": "Folder of variance.json, .csv and .png."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu", metadata={"help": "A torch device."})
    dtype: str = field(default="auto", metadata={"help": "'auto' (as saved), 'float32' or 'bfloat16'."})


def write(results: dict, folder: Path) -> None:
    """variance.json (everything) and variance.csv (the rows)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "variance.json").write_text(json.dumps(results, indent=1))
    with open(folder / "variance.csv", "w", newline="") as file:
        flat = [
            {key: value for key, value in row.items() if not isinstance(value, dict)}
            | {
                f"{key}_{end}": value
                for key, ends in row.items()
                if isinstance(ends, dict)
                for end, value in ends.items()
            }
            for row in results["rows"]
        ]
        writer = csv.DictWriter(file, flat[0])
        writer.writeheader()
        writer.writerows(flat)


def main(argv: list[str] | None = None) -> None:
    """Measure the models and pairs that the command line names, write the table and print it.

    Raises:
        SystemExit: a missing argument, or fewer pairs than asked for.
        ValueError: a setting out of range, a reference with another vocabulary, a row that cannot be read.
    """
    from tqdm import tqdm

    (args,) = HfArgumentParser(Arguments, description=__doc__.splitlines()[0]).parse_args_into_dataclasses(argv)
    missing = [f"--{name}" for name in ("model", "ref_model", "data") if getattr(args, name) is None]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}")
    tokenizer = load_tokenizer(args.model)
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=args.dtype).to(args.device).eval()
    reference = make_reference(policy, args.ref_model)
    assert reference is not None  # that is for adapters
    reference.to(args.device)
    ids = special_ids(tokenizer, policy.config)
    rows = load_rows(args.data, None, "train", False)
    length = min(row_length(args.max_length, model.config) for model in (policy, reference))
    pairs = prepare_pairs(rows, tokenizer, ids, length, drop_overlong=True, allow_identical=True, source=args.data)
    if len(pairs) < args.pairs:
        sys.exit(f"{args.data}: {len(pairs)} pairs fit max_length={length}, but pairs={args.pairs}: ask for fewer")
    collate = PairCollator(ids.pad, ids.eos, 1)
    chosen = list(pairs.select(range(args.pairs)))
    batches = [
        {key: value.to(args.device) for key, value in collate(chosen[i : i + args.batch_size]).items()}
        for i in range(0, args.pairs, args.batch_size)
    ]
    with tqdm(total=len(batches) * len(args.rows()), desc="variance") as bar:
        results = measure(policy, reference, batches, args, ids.mask, bar.update)
    results["settings"] = asdict(args)
    results["machine"] = {"device": args.device, "python": platform.python_version(), "torch": torch.__version__,
                          "transformers": transformers.__version__}  # fmt: skip
    write(results, Path(args.output))
    print_variance(results)
    draw_variance(results, Path(args.output) / "variance.png")
    print(f"Written: {args.output}/variance.json, .csv, .png")


if __name__ == "__main__":
    main()
