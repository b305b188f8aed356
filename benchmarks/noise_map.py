"""How much of a gradient's noise comes from the masks, against response length, margin, entropy, design and n.

    python benchmarks/noise_map.py base --data PAIRS.jsonl              train the base model once (20 minutes of CPU)
    python benchmarks/noise_map.py run --data PAIRS.jsonl [--lengths 16 32 64 128 256] [--texts all easy hard]
    python benchmarks/noise_map.py table

A small model of bytes is trained on both sides of the pairs. A case is a length L and a kind of text: prompts are cut
to their last 47 bytes, and both sides to their first L - 1, with EOS. "easy" and "hard" are the pairs whose bytes the
base model predicts best and worst: the 64 with the fewest and the most nats a byte. For each case a policy is trained
on 64 pairs (VRPO) until their mean margin is beyond 20 nats; between it and the base model the weights are
interpolated so that the mean margin of the 32 pairs that are measured is 0, 5 and 20 nats. The noise of the gradient of
one pair's loss, of all parameters, is then split as in `python -m vrpo.variance` (`vrpo.gradient_noise`), with the
paper's beta of 0.2. A batch of B pairs has a B-th of both parts, so that shares do not depend on the batch.

Lines go to runs/noise_map/rows.jsonl; a case and margin that are there are skipped.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback, set_seed

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from poems import COMMON
from quickstart import copy_of

from llada import LLaDAConfig, LLaDAModelLM
from llada.data.loading import load_rows
from llada.data.tokenizer import byte_tokenizer, special_ids
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.analysis.noise_split import noise_split, pair_gradients
from vrpo.analysis.redraw import mask_redraws, redrawn_elbos
from vrpo.analysis.settings import Settings
from vrpo.analysis.table import best_ratio, per_pair_statistics, row
from vrpo.collator import PairCollator
from vrpo.data import prepare_pairs
from vrpo.estimators.designs import Design, design
from vrpo.scores import PairScores

FOLDER = Path("runs/noise_map")
TOKENIZER = byte_tokenizer()
IDS = special_ids(TOKENIZER)
LENGTHS, MARGINS, PROMPT = (16, 32, 64, 128, 256), (0.0, 5.0, 20.0), 47
PAIRS, TRAINED = 32, 64  # measured, and trained on: the former are the first of the latter
SETTINGS = Settings(gradient="full", split_pairs=PAIRS, repeats=2, split_repeats=2, beta=0.2)
COMPLEMENTARY = {"levels": "mirrored", "complementary": True}
DESIGNS: list[tuple[str, Design]] = [("vrpo", design("vrpo", n_t=n)) for n in (1, 2, 4, 8)]
DESIGNS += [("vrpo, complementary", design("vrpo", n_t=2, **COMPLEMENTARY))]
DESIGNS += [("loo_complementary", design("loo_complementary", n_t=4))]


def model_config() -> LLaDAConfig:
    return LLaDAConfig(
        d_model=96, n_layers=4, n_heads=4, mlp_hidden_size=256, max_sequence_length=320, rope_theta=1e4,
        vocab_size=len(TOKENIZER), mask_token_id=IDS.mask, eos_token_id=IDS.eos, pad_token_id=IDS.pad,
    )  # fmt: skip


def cut_pairs(data: str, length: int) -> list[dict[str, str]]:
    """The pairs of a file of messages, with prompts of at most 47 bytes and sides of length - 1, without EOS.

    Pairs with a shorter side, and those that differ later only, are left out.
    """

    def text(message: list[dict] | str) -> str:
        return message if isinstance(message, str) else message[-1]["content"]

    rows = []
    for pair in load_rows(data, None, "train", False):
        whole = {key: text(pair[key]).encode("ascii", "ignore").decode() for key in ("prompt", "chosen", "rejected")}
        sides = {key: whole[key][: length - 1] for key in ("chosen", "rejected")}
        if min(map(len, sides.values())) == length - 1 and len(set(sides.values())) == 2:
            rows.append({"prompt": whole["prompt"][-PROMPT:]} | sides)
    return rows


def options(name: str, rate: float, batch: int, steps: int) -> dict:
    own = dict(
        output_dir=str(FOLDER / name), seed=0, learning_rate=rate, per_device_train_batch_size=batch, max_steps=steps,
        warmup_steps=steps // 20, max_length=LENGTHS[-1] + PROMPT + 1,
    )  # fmt: skip
    return COMMON | own


def train_base(data: str) -> None:
    """SFT on both sides of the pairs, at all lengths alike."""
    set_seed(0)
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side]}
        for length in LENGTHS for pair in cut_pairs(data, length) for side in ("chosen", "rejected")
    ]  # fmt: skip
    args = MaskedDiffusionConfig(**options("sft", 3e-3, 64, 1500), masks="exact_count")
    trainer = MaskedDiffusionTrainer(
        LLaDAModelLM(model_config()), args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
    )
    trainer.train()
    trainer.model.save_pretrained(FOLDER / "base")


def batch_of(pairs: list[dict[str, str]]) -> dict[str, Tensor]:
    rows = prepare_pairs(Dataset.from_list(pairs), TOKENIZER, IDS, LENGTHS[-1] + PROMPT + 1, source="pairs")
    return PairCollator(IDS.pad, IDS.eos, 1)(list(rows))


def exact(policy: LLaDAModelLM, base: LLaDAModelLM, pairs: list[dict[str, str]]) -> tuple[Tensor, Tensor]:
    """Margins [P] and the base model's nats a token [2P], with 16 of the least noisy draws."""
    batch = batch_of(pairs)
    draw = mask_redraws(batch, design("loo_complementary", n_t=16), 1)
    policy_1B, base_1B = redrawn_elbos(policy, base, batch, draw, [0])
    return PairScores.split((policy_1B - base_1B)[0]).margin, -base_1B[0] / batch["response_mask"].sum(-1)


def pairs_of_text(pairs: list[dict[str, str]], base: LLaDAModelLM, text: str) -> list[dict[str, str]]:
    """The pairs of a case: the first ones, or those that are easiest or hardest for the base model."""
    if text == "all":
        return pairs[:TRAINED]
    found = [PairScores.split(exact(base, base, pairs[i : i + 64])[1]) for i in range(0, len(pairs), 64)]
    nats = torch.cat([(each.chosen + each.rejected) / 2 for each in found]).tolist()
    order = sorted(range(len(pairs)), key=nats.__getitem__, reverse=text == "hard")
    return [pairs[index] for index in order[:TRAINED]]


class Enough(TrainerCallback):
    """Ends training once the mean margin of the measured pairs is beyond the largest of the map."""

    def __init__(self, base: LLaDAModelLM, pairs: list[dict[str, str]]):
        self.base, self.pairs = base, pairs

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % 10 == 0:
            margin = float(exact(model.eval(), self.base, self.pairs)[0].mean())
            print(f"step {state.global_step}, mean margin {margin:.1f}", flush=True)
            control.should_training_stop = margin > MARGINS[-1] * 1.05


def trained(base: LLaDAModelLM, pairs: list[dict[str, str]], name: str) -> LLaDAModelLM:
    """A policy whose mean margin on the first pairs is beyond the largest of the map."""
    design = dict(estimator="vrpo", n_t=2, estimator_options=COMPLEMENTARY)
    settings = dict(beta=0.05, loss_weights=[1.0, 0.0], variance_steps=0) | design
    args = VRPOConfig(**options(name, 2e-3, 16, 600) | {"lr_scheduler_type": "constant_with_warmup"}, **settings)
    trainer = VRPOTrainer(
        copy_of(base), base, args, train_dataset=Dataset.from_list(pairs), processing_class=TOKENIZER,
        callbacks=[Enough(base, pairs[:PAIRS])],
    )  # fmt: skip
    trainer.train()
    return trainer.model.eval()


def between(base: LLaDAModelLM, far: LLaDAModelLM, pairs: list[dict[str, str]], margin: float) -> LLaDAModelLM:
    """The model on the line from `base` to `far` whose mean margin is the given one, to 1%, by bisection.

    Raises:
        RuntimeError: the line does not reach it.
    """
    policy, low, high = copy_of(base).eval(), 0.0, 1.0
    for _ in range(20 if margin else 0):
        share = (low + high) / 2
        with torch.no_grad():
            for part, start, end in zip(policy.parameters(), base.parameters(), far.parameters(), strict=True):
                part.copy_(torch.lerp(start, end, share))
        found = float(exact(policy, base, pairs)[0].mean())
        if abs(found - margin) < 0.01 * margin:
            return policy
        low, high = (share, high) if found < margin else (low, share)
    if margin:
        raise RuntimeError(f"no model between base and policy has a mean margin of {margin}; the last one has {found}")
    return policy


def measure(policy: LLaDAModelLM, base: LLaDAModelLM, pairs: list[dict[str, str]]) -> list[dict]:
    """The rows of the map: each design's share of the gradient's noise, its noise scale and its reliability."""
    batch, parameters = batch_of(pairs), list(policy.parameters())
    length = PairScores.split(batch["response_mask"].sum(-1))
    redrawn, found = [], []
    for _, each in DESIGNS:
        draw = mask_redraws(batch, each, SETTINGS.seed)
        policy_RB, base_RB = redrawn_elbos(policy, base, batch, draw, range(SETTINGS.repeats))
        redrawn.append(PairScores.split(policy_RB - base_RB))
        found.append(pair_gradients(policy, [batch], each, [redrawn[-1]], parameters, SETTINGS))
    split, cells = noise_split(found, [each for _, each in DESIGNS], SETTINGS)
    assert split is not None  # full gradients always vary between masks
    best, loss = [best_ratio(redrawn)], SETTINGS.loss()
    rows = []
    for (name, each), ratios, own in zip(DESIGNS, redrawn, cells, strict=True):
        facts = row(name, each, per_pair_statistics(loss, [ratios], best, [length]))
        kept = {"design": name, "n": each.n, "reliability": facts["reliability"], "saturated": facts["saturated"]}
        rows.append(kept | own | {"quiet_between": split["between_variance"], "quiet_signal": split["squared_signal"]})
    return rows


def run(data: str, lengths: list[int], texts: list[str]) -> None:
    base = LLaDAModelLM.from_pretrained(FOLDER / "base").eval()
    file = FOLDER / "rows.jsonl"
    for length in lengths:
        for text in texts:
            done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
            missing = [
                m for m in MARGINS if not any((r["length"], r["text"], r["margin"]) == (length, text, m) for r in done)
            ]
            if not missing:
                continue
            pairs = pairs_of_text(cut_pairs(data, length), base, text)
            far = trained(base, pairs, f"policy-{length}-{text}")
            for margin in missing:
                begin = time.perf_counter()
                policy = between(base, far, pairs[:PAIRS], margin)
                nats = float(exact(policy, base, pairs[:PAIRS])[1].mean())
                rows = measure(policy, base, pairs[:PAIRS])
                with open(file, "a") as out:
                    for each in rows:
                        out.write(json.dumps({"length": length, "text": text, "margin": margin, "nats": nats} | each))
                        out.write("\n")
                print(f"{length} tokens, {text}, {margin} nats: {time.perf_counter() - begin:.0f} s", flush=True)


def cell(found: dict | None, scale: float) -> str:
    if found is None or found["value"] is None:
        return "-"
    ends = [f"{scale * found[end]:.0f}" if found[end] is not None else "" for end in ("low", "high")]
    return f"{scale * found['value']:.0f} [{', '.join(ends)}]"


def table() -> None:
    """One row for each case, margin and design: share of the noise from masks and reliability in %, noise scale."""
    print("text | length | nats/token | margin | design | n | share of masks, % | reliability, % | noise scale, pairs")
    for line in (FOLDER / "rows.jsonl").read_text().splitlines():
        each = json.loads(line)
        facts = [each["text"], each["length"], f"{each['nats']:.2f}", f"{each['margin']:g}", each["design"], each["n"]]
        values = [cell(each["estimator_share"], 100), cell(each["reliability"], 100), cell(each["noise_scale"], 1)]
        print(" | ".join(map(str, facts + values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("base", "run", "table"))
    parser.add_argument("--data", help="preference pairs, as text or messages")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--texts", nargs="+", default=["all"], choices=("all", "easy", "hard"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "table":
        return table()
    if args.data is None:
        parser.error("--data is needed")
    FOLDER.mkdir(parents=True, exist_ok=True)
    return train_base(args.data) if args.what == "base" else run(args.data, args.lengths, args.texts)


if __name__ == "__main__":
    main()
