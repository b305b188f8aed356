"""The second half of `make quickstart`: preference learning on a task where imitation is not enough.

    python examples/quickstart_poems.py [--seed 1]

A small LLaDA learns to write poems from demonstrations (`verses.py`). Two of its own poems make a pair, and a coin that
is biased towards the more cheerful one says which is chosen. VRPO trains on the pairs. A control continues SFT on the
chosen poems for the same number of forward passes: imitation, which ends at their mean mood. Both are measured by their
mood and by their distance from the base model, beside the best mood that is possible at that distance, which is known
here. In the first half (`quickstart.py --short`) chosen answers are right ones, and imitation does as well as VRPO.
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
from datasets import Dataset
from poems import COMMON, SAMPLER, labelled, measured, model_config, prompts_of, sample, twice
from quickstart import copy_of
from quickstart_poems_report import draw_report, introduce, print_poems, print_report
from quickstart_settings import set_threads
from quickstart_training import command, quieten, train
from torch import Tensor
from transformers import set_seed
from verses import TOKENIZER, TOPICS, demonstrations, is_well_formed, mood, rewards

from llada import LLaDAModelLM
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer
from vrpo import VRPOConfig, VRPOTrainer
from vrpo.analysis.frontier import best_of, kl_efficiency, tilt_at


@dataclass(frozen=True)
class Settings:
    """How much is done. `curve` samples of the base model, with those of the pairs, show what is possible.

    beta and control_rate are those of `benchmarks/frontier.py`, whose base model is narrower and trained for longer;
    vrpo_rate was found on seed 1.
    """

    demonstrations: int = 20_000
    width: int = 96  # in the same time as a width of 64 it learns more of the poems' rules
    sft_steps: int = 1800
    sft_batch: int = 128
    sft_rate: float = 3e-3  # at 5e-3 one of two seeds learned fewer of the rules
    pairs: int = 2048
    curve: int = 10_000
    batch: int = 64
    vrpo_steps: int = 195
    vrpo_rate: float = 7e-4
    # The noise of one draw acts like a larger beta, three to four times this one (docs/choosing-n.md).
    beta: float = 0.125
    draws: int = 1
    control_rate: float = 3e-4
    samples: int = 2000  # by which a policy is measured

    @property
    def units(self) -> int:
        """The cost of VRPO, in forward passes of a response for a draw: policy, reference, and two for the gradient."""
        return self.vrpo_steps * self.batch * 2 * self.draws * 4

    @property
    def control_steps(self) -> int:
        """Steps of SFT that cost as much: a forward pass of each response, and two for the gradient."""
        return self.units // (self.batch * 3)


def fine_tune(folder: Path, seed: int, size: Settings) -> LLaDAModelLM:
    """The base model: SFT from scratch on demonstrations."""
    set_seed(seed)
    args = MaskedDiffusionConfig(
        str(folder / "sft"), seed=seed, max_steps=size.sft_steps, per_device_train_batch_size=size.sft_batch,
        learning_rate=size.sft_rate, warmup_steps=size.sft_steps // 18, masks="exact_count", **COMMON,
    )  # fmt: skip
    rows = Dataset.from_list(demonstrations(size.demonstrations, random.Random(seed)))
    trainer = MaskedDiffusionTrainer(
        LLaDAModelLM(model_config(size.width)), args, train_dataset=rows, processing_class=TOKENIZER
    )
    train(trainer)
    return trainer.model.eval()


def align(base: LLaDAModelLM, folder: Path, seed: int, pairs: list[dict[str, str]], size: Settings) -> LLaDAModelLM:
    """VRPO on the pairs, from the base model, which is the reference."""
    args = VRPOConfig(
        str(folder / "vrpo"), seed=seed, max_steps=size.vrpo_steps, per_device_train_batch_size=size.batch,
        gradient_accumulation_steps=1, learning_rate=size.vrpo_rate, warmup_steps=size.vrpo_steps // 10,
        beta=size.beta, n_t=size.draws, loss_weights=[1.0, 0.0], variance_steps=0,
        **COMMON | {"logging_strategy": "steps", "logging_steps": 3},  # for the curves of the page
    )  # fmt: skip
    trainer = VRPOTrainer(copy_of(base), base, args, train_dataset=Dataset.from_list(pairs), processing_class=TOKENIZER)
    train(trainer, page=True)
    return trainer.model


def continue_sft(
    base: LLaDAModelLM, folder: Path, seed: int, pairs: list[dict[str, str]], size: Settings
) -> LLaDAModelLM:
    """The control: SFT on the chosen poems for as many forward passes as VRPO takes."""
    args = MaskedDiffusionConfig(
        str(folder / "control"), seed=seed, max_steps=size.control_steps, per_device_train_batch_size=size.batch,
        learning_rate=size.control_rate, warmup_steps=size.control_steps // 10, masks="exact_count", **COMMON,
    )  # fmt: skip
    rows = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    trainer = MaskedDiffusionTrainer(
        copy_of(base), args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER
    )
    train(trainer)
    return trainer.model


def own_poems(base: LLaDAModelLM, seed: int, size: Settings) -> tuple[list[dict[str, str]], Tensor, float]:
    """Pairs of the base model's poems, the rewards of all poems that were sampled, [N], and their well-formed share."""
    rng = random.Random(seed)
    prompts = twice(prompts_of(size.pairs, rng))
    of_pairs_BL = sample(base, prompts, seed)
    pairs = labelled(prompts, of_pairs_BL, rng)
    more = prompts_of(size.curve, rng)
    poems_NL = torch.cat([of_pairs_BL, sample(base, more, seed + 1)])
    texts = TOKENIZER.batch_decode(poems_NL, skip_special_tokens=True)
    return pairs, rewards(poems_NL), sum(map(is_well_formed, prompts + more, texts)) / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="runs/quickstart_poems")
    args = parser.parse_args()
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    introduce(set_threads())
    quieten()
    results, reward_N, shown = run(folder, args.seed, Settings())
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    print_poems(shown)
    print_report(results)
    draw_report(results, reward_N, folder / "frontier.png")
    print(f"\nWritten: {folder}/results.json, frontier.png, pairs.jsonl, base_model/, model/")
    print(f"The page of the VRPO run, for a browser: {folder}/vrpo/report.html")
    print("Next, ask the aligned model for a poem (its 12 words come in one line):")
    print(f"    echo sea | {command('llada')} chat --model {folder}/model --plain")


def run(folder: Path, seed: int, size: Settings) -> tuple[dict, Tensor, dict[str, tuple[str, str]]]:
    """All stages; models and pairs are saved in the folder.

    Returns:
        The results that the report prints; the rewards of the base model's poems, [N]; {topic: poem before and after}.
    """
    seconds: dict[str, float] = {}

    def timed(name: str, work, *inputs):
        start = time.perf_counter()
        result = work(*inputs)
        seconds[name] = round(time.perf_counter() - start, 1)
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
        return result

    base = timed("base model", fine_tune, folder, seed, size)
    pairs, reward_N, well_formed = timed("its poems", own_poems, base, seed, size)
    vrpo = timed("VRPO", align, base, folder, seed, pairs, size)
    control = timed("SFT on the chosen", continue_sft, base, folder, seed, pairs, size)
    found = {
        name: timed(f"measure {name}", measured, model, base, size.samples, 10_000 + seed)
        for name, model in (("control", control), ("vrpo", vrpo))
    }
    for arm in found.values():
        best = tilt_at(reward_N, max(0.0, arm["kl"]))
        arm["best_reward"] = None if best is None else best.reward
        arm["efficiency"] = kl_efficiency(reward_N, arm["reward"], arm["kl"]) if arm["kl"] > 0 else None
    for name, model in (("base_model", base), ("model", vrpo)):
        model.save_pretrained(folder / name)
        TOKENIZER.save_pretrained(folder / name)
        SAMPLER.save(folder / name)
    with open(folder / "pairs.jsonl", "w") as file:
        file.writelines(json.dumps(pair) + "\n" for pair in pairs)
    moods = [mood(pair["chosen"]) for pair in pairs]
    results = {
        "seed": seed, "samples": size.samples, "pairs": len(pairs), "units": size.units,
        "base": {
            "reward": float(reward_N.mean()), "reward_error": float(reward_N.std()) / len(reward_N) ** 0.5,
            "well_formed": well_formed, "samples": len(reward_N),
        },
        "chosen": {
            "reward": mean(moods), "reward_error": stdev(moods) / len(moods) ** 0.5,
            "well_formed": mean(is_well_formed(pair["prompt"], pair["chosen"]) for pair in pairs),
        },
        **found,
        "best_of": {k: [best_of(reward_N, k).reward, best_of(reward_N, k).kl] for k in (2, 4, 16)},
        "seconds": seconds | {"total": round(sum(seconds.values()), 1)},
    }  # fmt: skip
    return results, reward_N, poems_of(base, vrpo, seed)


def poems_of(base: LLaDAModelLM, policy: LLaDAModelLM, seed: int) -> dict[str, tuple[str, str]]:
    """A poem of both for each topic; drawn with the same random numbers."""
    both = (sample(model, list(TOPICS), seed) for model in (base, policy))
    texts = (TOKENIZER.batch_decode(poems_BL, skip_special_tokens=True) for poems_BL in both)
    return dict(zip(TOPICS, zip(*texts, strict=True), strict=True))


if __name__ == "__main__":
    main()
