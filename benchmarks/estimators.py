"""Variance of scores and gradients at equal forward passes: the paper's forms, loo_complementary, published designs.

python benchmarks/estimators.py [--quick] [--one_manner] [--json PATH]
python benchmarks/estimators.py --policy DIR --reference DIR --data PAIRS.jsonl [--length 128] [--only NAME]

The script trains a reference and a policy on a synthetic task (`examples/spelling.py`), or takes two models and pairs
(with --length, the pairs whose responses are nearest to it). Variances are of the margin M = s / beta, in nats^2. Those
of the paper's two forms, L/l and 1/t (with a floor of 1e-3), come from per-count moments
(`vrpo.analysis.variance_sources`), all others from redraws. "gain" is the form's variance over the design's at the same
number of forward passes, a ratio of means over pairs with its jackknife 95% interval.
"""

import argparse
import json
import logging
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from llada.intervals import Interval
from vrpo.analysis.redraw import mask_redraws, masked_sum_tables, redrawn_elbos, redrawn_gradients
from vrpo.analysis.statistics import jackknife, ratio_of_means
from vrpo.analysis.table import chosen_parameters
from vrpo.analysis.variance_sources import split_bernoulli, split_exact_count
from vrpo.collator import pairs_of
from vrpo.estimators.designs import ComposedDesign, Design, design
from vrpo.estimators.published import PUBLISHED

BUDGETS = (2, 4, 8, 16)
FORMS = {"L/l": split_exact_count, "1/t": split_bernoulli}
PARTS = ("loo_complementary", "published", "orderings", "gradients")


BATCH = 8  # pairs forwarded together; masks do not depend on it


@dataclass
class Case:
    """Two models, batches of pairs, and the rows measured so far, which are written after each one."""

    policy: torch.nn.Module
    reference: torch.nn.Module
    batches: list[dict[str, Tensor]]
    redraws: int = 64
    path: str | None = None
    rows: list[dict] = field(default_factory=list)
    single: dict[str, Tensor] = field(default_factory=dict)  # variance of the margin with one draw, by form, [P]

    def note(self, name: str, found: Interval | float, unit: str = "ratio") -> str:
        """Record a row, rewrite the JSON file and return the value as text."""
        low, high = (None, None) if isinstance(found, float) else (found.low, found.high)
        value = found if isinstance(found, float) else found.value
        self.rows.append({"name": name, "value": value, "unit": unit, "low": low, "high": high})
        if self.path:
            Path(self.path).write_text(json.dumps(self.rows, indent=1))
        return str(found) if isinstance(found, Interval) else f"{value:.3g}"

    def margins(self, draw_of) -> Tensor:
        """Redrawn margins, [R, P]."""
        found = []
        for batch in self.batches:
            draw, redraws = draw_of(batch), range(self.redraws)
            ours, theirs = redrawn_elbos(self.policy, self.reference, batch, draw, redraws)
            chosen_RP, rejected_RP = (ours - theirs).chunk(2, dim=1)
            found.append(chosen_RP - rejected_RP)
        return torch.cat(found, 1)

    def design(self, name: str, n: int, draw_of) -> Tensor:
        """Print a design's variance and its gain over both forms; return its redrawn margins, [R, P]."""
        values_RP = self.margins(draw_of)
        variance_P = values_RP.var(0)
        line = f"{name:28} n={n:<3} Var[M] {self.note(f'{name}, n={n}, Var[M]', float(variance_P.mean()), 'nats^2'):>8}"
        for form, single_P in self.single.items():
            gain = jackknife(ratio_of_means, single_P / n, variance_P)
            line += f"  gain over {form} " + self.note(f"{name}, n={n}, gain over {form}", gain)
        print(line, flush=True)
        return values_RP


def draws_of(design: Design):
    return lambda batch: mask_redraws(batch, design, 1)


def small_case(args) -> Case:
    from compare_estimators import batches_of
    from spelling import small_models

    reference, policy = small_models(Path("runs/estimators"), 0, args.one_manner, args.sft_steps)
    return Case(policy, reference, batches_of(args.pairs, BATCH, args.fresh, args.one_manner))


def given_case(args) -> Case:
    """Two models, and the pairs whose mean response length is nearest to --length (all in order without it)."""
    from transformers import AutoModelForCausalLM

    import llada  # noqa: F401
    from llada.data.loading import load_rows
    from llada.data.tokenizer import load_tokenizer, special_ids
    from vrpo.collator import PairCollator
    from vrpo.data import prepare_pairs
    from vrpo.training.reference import make_reference

    policy = AutoModelForCausalLM.from_pretrained(args.policy).eval()
    reference = make_reference(policy, args.reference)
    tokenizer = load_tokenizer(args.policy)
    ids = special_ids(tokenizer, policy.denoiser_spec)
    rows = load_rows(args.data, None, "train", False)
    pairs = list(
        prepare_pairs(rows, tokenizer, ids, policy.denoiser_spec.context, drop_overlong=True, source=args.data)
    )
    if args.length:
        mean = [(len(p["chosen_ids"]) + len(p["rejected_ids"])) / 2 for p in pairs]
        pairs = [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: abs(mean[i] - args.length))]
    collate = PairCollator(ids.pad, ids.eos, 1)
    chosen = pairs[: args.pairs]
    batches = [collate(chosen[i : i + BATCH]) for i in range(0, len(chosen), BATCH)]
    return Case(policy, reference, batches)


def paper_forms(case: Case, counts: int, masks: int) -> None:
    """Variance of the paper's two forms from per-count moments; the L/l form is also redrawn, as a check."""
    found = []  # of the chosen and the rejected response of each pair
    for batch in tqdm(case.batches, desc="masked sums"):
        both = masked_sum_tables(case.policy, case.reference, batch, counts, masks, 2)
        found += zip(both[: len(both) // 2], both[len(both) // 2 :], strict=True)
    lengths = torch.cat([batch["response_mask"].sum(-1) for batch in case.batches]).double()
    mean = case.note("mean response length", float(lengths.mean()), "tokens")
    print(f"\n{len(found)} pairs, mean response {mean} tokens, {case.redraws} redraws")
    for form, split in FORMS.items():
        parts = [[split(table).of(1) for table in pair] for pair in found]
        case.single[form] = torch.tensor(parts, dtype=torch.float64).sum(1)
        sources = torch.tensor([[s.level, s.count, s.pattern] for pair in found for s in map(split, pair)]).sum(0)
        level, count, pattern = (sources / sources.sum()).tolist()
        drawn = (
            f"count {level:.0%}" if form == "L/l" else f"level {level:.0%}, count {count:.0%}"
        )  # the L/l form draws the count
        print(f"{form} form by source: {drawn}, mask pattern {pattern:.0%}")
    gain = jackknife(ratio_of_means, case.single["1/t"], case.single["L/l"])
    print("L/l form over 1/t form:", case.note("L/l form, gain over 1/t form", gain))
    margin_P = case.design("vrpo (L/l), redrawn", 4, draws_of(design("vrpo", n_t=4))).mean(0)
    print("mean margin:", case.note("mean margin", jackknife(torch.mean, margin_P), "nats"))


def published(case: Case) -> None:
    """Variance of the published designs, and the squared bias of those that are biased."""
    exact_RP = case.margins(draws_of(design("loo_complementary", n_t=16)))
    for name in PUBLISHED:
        for n in (4, 8):
            published_design = design(name, n_t=n)
            values_RP = case.design(name, n, draws_of(published_design))
            if published_design.biased:  # its mean differs from an unbiased design's by its bias
                noise_P = (values_RP.var(0) + exact_RP.var(0)) / case.redraws
                square_P = (values_RP.mean(0) - exact_RP.mean(0)).square() - noise_P
                bias = jackknife(torch.mean, square_P)
                print("    its squared bias:", case.note(f"{name}, n={n}, squared bias", bias, "nats^2"))


def orderings(case: Case) -> None:
    for n in (2, 8, 16):
        case.design("vrpo", n, draws_of(design("vrpo", n_t=n)))
    case.design("vrpo n_t=1 n_y=4", 4, draws_of(ComposedDesign(1, 4)))
    case.design("vrpo n_t=2 n_y=2", 4, draws_of(ComposedDesign(2, 2)))
    case.design("vrpo, masks not shared", 4, draws_of(ComposedDesign(4, shared_masks=False)))


def gradients(case: Case) -> None:
    """Total variance of the gradient of each pair's margin: of the head, and of all parameters."""
    slope = torch.tensor([1.0, -1.0], dtype=torch.float64)
    head, every = (chosen_parameters(case.policy, which) for which in ("head", "full"))
    fewer = max(2, case.redraws // 4)
    for what, parameters, redraws in (("head", head, case.redraws), ("full", every, fewer)):

        def variances(name: str, n: int, parameters=parameters, redraws=redraws) -> Tensor:
            found = [
                redrawn_gradients(
                    case.policy, batch, mask_redraws(batch, design(name, n_t=n), 1), range(redraws),
                    parameters, slope.expand(redraws, 2),
                ).variance
                for whole in case.batches for batch in pairs_of(whole)
            ]  # fmt: skip
            return torch.tensor(found, dtype=torch.float64)

        for n in (4, 8):
            gain = jackknife(ratio_of_means, variances("vrpo", n), variances("loo_complementary", n))
            found = case.note(f"loo_complementary, n={n}, {what} gradient, gain over L/l", gain)
            print(f"{what} gradient of the margin, n={n}: gain of loo_complementary over L/l {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 pairs and 16 redraws")
    parser.add_argument("--one_manner", action="store_true", help="the synthetic task's hard case")
    parser.add_argument("--sft_steps", type=int, default=200, help="SFT steps of the synthetic task's reference")
    parser.add_argument("--fresh", type=int, default=20261121, help="seed of the synthetic task's pairs")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--redraws", type=int, default=64)
    parser.add_argument("--masks", type=int, default=24, help="masks at each masked count in a table of masked sums")
    parser.add_argument("--counts", type=int, default=64, help="maximum number of masked counts in a table")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="values of n for loo_complementary")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="what to measure besides the forms")
    for name in ("policy", "reference", "data", "json"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--length", type=int)
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.redraws, args.masks = 8, 16, 8
    logging.getLogger("transformers").setLevel(logging.ERROR)
    start = time.perf_counter()
    case = (given_case if args.policy else small_case)(args)
    case.redraws, case.path = args.redraws, args.json
    paper_forms(case, args.counts, args.masks)
    if "loo_complementary" in args.only:
        for n in args.budgets:
            case.design("loo_complementary", n, draws_of(design("loo_complementary", n_t=n)))
    for part in (published, orderings, gradients):
        if part.__name__ in args.only:
            part(case)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
