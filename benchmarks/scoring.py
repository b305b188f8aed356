"""How many forward passes a multiple-choice decision needs: the designs of `llada.diffusion.scoring` side by side.

    python benchmarks/scoring.py --data PAIRS.jsonl [--questions 20] [--json PATH]

Three tasks, with the models that `frontier.py base` and `noise_map.py base` have trained: four poems on a topic, of
which one is the likeliest (12 tokens); four answers of 48 bytes to a GSM8K problem, of which one is its own; and the
right and the wrong answer of a pair, 64 bytes each.

"variance": of a value from 16 draws, over that of the published draw, a ratio of means over answers with its jackknife
interval over questions. "agree": decisions that are those of 512 draws of `loo_complementary`. "flips": decisions
that differ between two runs. "rows": forwarded for a question. With `lead`, questions end early.
"""

import argparse
import json
import random
import sys
from itertools import combinations
from pathlib import Path
from statistics import mean

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import noise_map
from verses import TOKENIZER as WORDS
from verses import TOPICS, demonstration

from llada import LLaDAModelLM
from llada.denoiser import as_denoiser
from llada.diffusion.scoring import DESIGNS, Answer, Scorer, ScoreSettings
from llada.intervals import proportion
from vrpo.analysis.statistics import jackknife, ratio_of_means

RUNS, REFERENCE = 4, 512
Question = list[Answer]


def answer(context: list[int], tokens: list[int], key: int) -> Answer:
    return Answer(tuple(context), tuple(tokens), key, float(len(tokens)))


def poems(number: int, rng: random.Random) -> list[Question]:
    found = []
    for question in range(number):
        topic = rng.choice(list(TOPICS))
        texts = [WORDS(demonstration(topic, rng)).input_ids for _ in range(4)]
        found.append([answer(WORDS(topic).input_ids, text, 4 * question + i) for i, text in enumerate(texts)])
    return found


def pairs(number: int, data: str, length: int, sides: tuple[str, ...], others: int) -> list[Question]:
    """The sides of a pair as options, and the first sides of so many other pairs."""
    rows = noise_map.cut_pairs(data, length)[-4 * number :]
    found = []
    for question in range(number):
        texts = [rows[4 * question][side] for side in sides]
        texts += [rows[4 * question + i][sides[0]] for i in range(1, others + 1)]
        context = noise_map.TOKENIZER(rows[4 * question]["prompt"]).input_ids
        found.append(
            [answer(context, noise_map.TOKENIZER(text).input_ids, 4 * question + i) for i, text in enumerate(texts)]
        )
    return found


def best(values: list[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def coupled(questions: list[Question]) -> list[Question]:
    return [[Answer(each.context, each.tokens, options[0].key, each.size) for each in options] for options in questions]


def groups_of(
    model, questions: list[Question], design: str, size: int, groups: int, seed: int = 0
) -> list[list[list[float]]]:
    """The means of independent groups, by question and option."""
    settings = ScoreSettings(design, draws=size * groups, group=size, batch_size=64, seed=seed)
    scorer = Scorer(as_denoiser(model), settings)
    return [[each.groups for each in estimates] for question in questions for estimates in scorer.score([question])]


def decisions(found: list[list[list[float]]], groups: int) -> list[list[int]]:
    """For each question, the decisions of runs with so many groups each."""
    runs = len(found[0][0]) // groups
    return [
        [best([mean(option[run * groups : (run + 1) * groups]) for option in options]) for run in range(runs)]
        for options in found
    ]


def summary(decided: list[list[int]], truth: list[int]) -> dict:
    """Agreement with the truth with Wilson's interval over all runs and questions, and flips between two runs."""
    right = [each == true for runs, true in zip(decided, truth, strict=True) for each in runs]
    flips = mean(a != b for runs in decided for a, b in combinations(runs, 2))
    return {"agree": str(proportion(right)), "flips": round(flips, 4)}


def measure(name: str, model, questions: list[Question]) -> list[dict]:
    model.eval()
    # A seed of its own: the draws that are compared with the reference are none of it.
    reference = groups_of(model, questions, "loo_complementary", 16, REFERENCE // 16, seed=10_000)
    truth = [best([mean(option) for option in options]) for options in reference]
    tokens, options = mean(len(each.tokens) for question in questions for each in question), len(questions[0])
    print(f"\n{name}: {len(questions)} questions of {options} options of {tokens:.0f} tokens")
    variance, rows = {}, []

    def note(**facts) -> None:
        rows.append({"task": name, **facts})
        print(" | ".join(str(value) for value in facts.values()), flush=True)

    for kind, asked in (("", questions), (", coupled", coupled(questions))):
        for design in DESIGNS:
            found = groups_of(model, asked, design, 16, 8 * RUNS)
            variance[design] = torch.tensor(
                [mean(torch.tensor(option).var().item() for option in each) for each in found]
            )
            ratio = jackknife(ratio_of_means, variance[design], variance["published"])
            for groups in (1, 2, 3, 8):
                facts = summary(decisions(found, groups), truth)
                note(design=design + kind, draws=16 * groups, variance=str(ratio), **facts, rows=16 * groups * options)
    for group in (4, 8):
        for lead in (2.0, 3.0):
            decided, rows_of = [[] for _ in questions], 0
            for run in range(RUNS):
                settings = ScoreSettings(
                    "loo_complementary", draws=128, group=group, lead=lead, batch_size=64, seed=run
                )
                scorer = Scorer(as_denoiser(model), settings)
                for index, question in enumerate(questions):
                    decided[index].append(best([each.value for each in scorer.score([question])[0]]))
                rows_of += scorer.rows
            cost = rows_of / RUNS / len(questions)
            note(design=f"loo_complementary, groups of {group}, lead {lead:g}", draws="128 at most", variance="",
                     **summary(decided, truth), rows=round(cost, 1))  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="preference pairs, as text or messages")
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--poems", default="runs/frontier/base")
    parser.add_argument("--bytes", default="runs/noise_map/base")
    parser.add_argument("--tasks", nargs="+", help="poems, own answer, right or wrong; default: all")
    parser.add_argument("--json", help="file of the rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    poet, writer = (LLaDAModelLM.from_pretrained(path) for path in (args.poems, args.bytes))
    rng = random.Random(1)
    print("design | draws | variance over published | agree | flips | rows a question")
    tasks = {
        "poems": (poet, poems(args.questions, rng)),
        "own answer": (writer, pairs(args.questions, args.data, 49, ("chosen",), 3)),
        "right or wrong": (writer, pairs(args.questions, args.data, 65, ("chosen", "rejected"), 0)),
    }
    rows = [row for name in args.tasks or tasks for row in measure(name, *tasks[name])]
    if args.json:
        Path(args.json).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
