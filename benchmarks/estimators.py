"""Variance of preference scores and gradients at equal forward passes: the paper's forms, cpl, and published designs.

python benchmarks/estimators.py [--quick] [--one_manner] [--json PATH]
python benchmarks/estimators.py --policy DIR --reference DIR --data PAIRS.jsonl [--length 128]

Trains a reference and a policy on a made-up task (`examples/lookup.py`), or takes two models and pairs (with --length,
those whose responses are nearest to it). Values are of the margin M = s / beta, nats^2. Both paper's forms come from
per-count moments (`vrpo.diagnostics.Bank`), the 1/t form with a floor of 1e-3; everything else is redrawn. "gain" is
the form's variance over the design's at the same number of forward passes, a ratio of means over pairs with its
jackknife 95% interval.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

import torch
from published_designs import PUBLISHED, by_response
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from vrpo.diagnostics import Interval, jackknife, ratio_of_means, split_bernoulli, split_exact_count
from vrpo.estimators import Estimator, design
from vrpo.redraw import banks, planner, redrawn_elbos, redrawn_gradients

BUDGETS = (2, 4, 8, 16)
FORMS = {"L/l": split_exact_count, "1/t": split_bernoulli}


def small_case(args):
    from compare_estimators import batches_of
    from lookup import TOKENIZER, small_models

    from llada.tokenizer import special_ids

    reference, policy = small_models(Path("runs/estimators"), one_manner=args.one_manner)
    return policy, reference, batches_of(args.pairs, 1, 4321, args.one_manner), special_ids(TOKENIZER).mask


def given_case(args):
    """Two models, and the pairs whose mean response length is nearest to --length (all in order without it)."""
    from transformers import AutoModelForCausalLM

    import llada  # noqa: F401
    from llada.data import load_rows
    from llada.tokenizer import load_tokenizer, special_ids
    from vrpo.data import PairCollator, prepare_pairs
    from vrpo.reference import make_reference

    policy = AutoModelForCausalLM.from_pretrained(args.policy).eval()
    reference = make_reference(policy, args.reference)
    tokenizer = load_tokenizer(args.policy)
    ids = special_ids(tokenizer, policy.config)
    rows = load_rows(args.data, None, "train", False)
    pairs = list(
        prepare_pairs(rows, tokenizer, ids, policy.config.max_sequence_length, drop_overlong=True, source=args.data)
    )
    if args.length:
        mean = [(len(p["chosen_ids"]) + len(p["rejected_ids"])) / 2 - p["prompt_length"] for p in pairs]
        pairs = [pairs[i] for i in sorted(range(len(pairs)), key=lambda i: abs(mean[i] - args.length))]
    collate = PairCollator(ids.pad, ids.eos, 1)
    return policy, reference, [collate([pair]) for pair in pairs[: args.pairs]], ids.mask


def margins(policy, reference, batches, draw_of, redraws: int, mask_id: int) -> Tensor:
    """Redrawn margins, [R, P]."""
    found = []
    for batch in batches:
        ours, theirs = redrawn_elbos(policy, reference, batch, draw_of(batch), range(redraws), mask_id)
        chosen_RP, rejected_RP = (ours - theirs).chunk(2, dim=1)
        found.append(chosen_RP - rejected_RP)
    return torch.cat(found, 1)


def gradient_variances(policy, batches, estimator, redraws: int, mask_id: int, parameters) -> Tensor:
    """Total variance of the gradient of each pair's margin, [P]."""
    slope = torch.tensor([1.0, -1.0], dtype=torch.float64).expand(redraws, 2)
    return torch.tensor(
        [
            redrawn_gradients(policy, b, planner(b, estimator, 1), range(redraws), mask_id, parameters, slope).variance
            for b in batches
        ],
        dtype=torch.float64,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="8 pairs and 16 redraws")
    parser.add_argument("--one_manner", action="store_true", help="the task's hard case")
    parser.add_argument("--pairs", type=int, default=32)
    parser.add_argument("--redraws", type=int, default=64)
    parser.add_argument("--masks", type=int, default=24, help="masks at each count of a bank")
    parser.add_argument("--counts", type=int, default=64, help="counts of a bank, all where the response is shorter")
    parser.add_argument("--no_gradients", action="store_true")
    for name in ("policy", "reference", "data", "json"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--length", type=int)
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.redraws, args.masks = 8, 16, 8
    logging.getLogger("transformers").setLevel(logging.ERROR)
    start, rows = time.perf_counter(), []
    policy, reference, batches, mask_id = (given_case if args.policy else small_case)(args)
    lengths = torch.cat([batch["scored"].sum(-1) for batch in batches]).double()

    def note(name: str, found: Interval | float, unit: str = "ratio") -> str:
        ends = (None, None) if isinstance(found, float) else (found.low, found.high)
        value = found if isinstance(found, float) else found.value
        rows.append({"name": name, "value": value, "unit": unit, "low": ends[0], "high": ends[1]})
        return str(found) if isinstance(found, Interval) else f"{value:.3g}"

    # The paper's forms by per-count moments, for any budget
    found = [
        banks(policy, reference, batch, args.counts, args.masks, 2, mask_id) for batch in tqdm(batches, desc="banks")
    ]
    single = {
        form: torch.tensor([sum(split(bank).of(1) for bank in pair) for pair in found], dtype=torch.float64)
        for form, split in FORMS.items()
    }
    splits = [split_bernoulli(bank) for pair in found for bank in pair]
    parts = torch.tensor([[s.level, s.count, s.pattern] for s in splits]).sum(0)
    print(
        f"\n{len(batches)} pairs, mean response {note('mean response length', float(lengths.mean()), 'tokens')} tokens"
    )
    print("1/t form by source: level {:.0%}, count {:.0%}, mask pattern {:.0%}".format(*(parts / parts.sum()).tolist()))
    print(
        "L/l form over 1/t form:",
        note("L/l form, gain over 1/t form", jackknife(ratio_of_means, single["1/t"], single["L/l"])),
    )

    def direct(name: str, n: int, draw_of) -> Tensor:
        values_RP = margins(policy, reference, batches, draw_of, args.redraws, mask_id)
        variance_P = values_RP.var(0)
        line = f"{name:28} n={n:<3} Var[M] {note(f'{name}, n={n}, Var[M]', float(variance_P.mean()), 'nats^2'):>8}"
        for form in FORMS:
            line += f"  gain over {form} " + note(
                f"{name}, n={n}, gain over {form}", jackknife(ratio_of_means, single[form] / n, variance_P)
            )
        print(line, flush=True)
        return values_RP

    def ours(estimator: Estimator):
        return lambda batch: planner(batch, estimator, 1)

    margin_P = direct("vrpo (L/l), redrawn", 4, ours(design("vrpo", n_t=4))).mean(0)
    print("mean margin:", note("mean margin", jackknife(torch.mean, margin_P), "nats"))
    for n in BUDGETS:
        direct("cpl", n, ours(design("cpl", n_t=n)))
    for name, draw in PUBLISHED.items():
        for n in (4, 8):

            def draw_of(batch, draw=draw, n=n):
                def plans(redraw):
                    plan = by_response(draw, batch["scored"], batch["example_id"].tolist(), n, 1, redraw)
                    return plan, plan

                return plans

            values_RP = direct(name, n, draw_of)
            if name == "Gauss-Legendre":
                exact_RP = margins(policy, reference, batches, ours(design("cpl", n_t=16)), args.redraws, mask_id)
                noise_P = (values_RP.var(0) + exact_RP.var(0)) / args.redraws
                square_P = (values_RP.mean(0) - exact_RP.mean(0)).square() - noise_P
                print(
                    "    its squared bias:",
                    note(f"{name}, n={n}, squared bias", jackknife(torch.mean, square_P), "nats^2"),
                )
    direct("vrpo n_t=1 n_y=4", 4, ours(Estimator(1, 4)))
    direct("vrpo n_t=2 n_y=2", 4, ours(Estimator(2, 2)))
    direct("vrpo uncoupled", 4, ours(Estimator(4, coupled=False)))

    if not args.no_gradients:
        head = [p for name, p in policy.named_parameters() if "transformer.ff_out." in name]
        for what, parameters, redraws in (
            ("head", head, args.redraws),
            ("full", list(policy.parameters()), max(2, args.redraws // 4)),
        ):
            for parameter in policy.parameters():
                parameter.requires_grad_(any(parameter is p for p in parameters))
            for n in (4, 8):
                both = [
                    gradient_variances(policy, batches, design(name, n_t=n), redraws, mask_id, parameters)
                    for name in ("vrpo", "cpl")
                ]
                print(f"{what} gradient of the margin, n={n}: gain of cpl over L/l", note(
                    f"cpl, n={n}, {what} gradient, gain over L/l", jackknife(ratio_of_means, *both)
                ), flush=True)  # fmt: skip
    print(f"{time.perf_counter() - start:.0f} s")
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
