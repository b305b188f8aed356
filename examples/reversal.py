"""The reversal task: facts that were taught in one direction, asked in both, of an autoregressive model and of a LLaDA.

    python examples/reversal.py        (3 seeds, two models each; the time that it took is in docs/results.md)

    taught     Dama Meda is foka kiha vifa          50 facts in this order only, 50 others also turned around
    forward    Dama Meda is ...                     the description is asked for
    turned     foka kiha vifa is ...                the name is asked for, in a form that the other facts have taught
    in place   ... ... is foka kiha vifa            the name is asked for where it was taught

Both models are the same transformer (config field `causal`), see the same sentences in the same batches, and answer the
same questions. An autoregressive model writes from the left, so that in place it writes before it has read anything. To
give it its best chance, both also rank all names: by p(name | description, is) when turned, and in place by the
likelihood of the whole sentence, which by Bayes' rule uses what was learnt forward and takes a forward pass for each
name. LLaDA's score is the bound of the name's two tokens, exact over its three masks. (The task is that of Berglund et
al., arXiv 2309.12288; LLaDA, arXiv 2502.09992, section 3.3, asks it about poems.)
"""

import argparse
import itertools
import json
import random
import time
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PrinterCallback, set_seed
from verses import word_tokenizer

from llada import LLaDAConfig, LLaDAModelLM, causal_generate, causal_log_likelihood, elbo_draws, generate, infill
from llada.data.tokenizer import special_ids
from llada.diffusion.masking import MaskDraws
from llada.intervals import proportion
from llada.training.sft import MaskedDiffusionConfig, MaskedDiffusionTrainer

FOLDER = Path("runs/reversal")
SYLLABLES = [[a + b for a in consonants for b in "aeio"] for consonants in ("bdlm", "fhkv")]
DESCRIBING = ["".join(pair) for pair in itertools.product(SYLLABLES[1], SYLLABLES[1])][::4]
NAMES = ["".join(pair).capitalize() for pair in itertools.product(SYLLABLES[0], SYLLABLES[0])][::4]
TOKENIZER = word_tokenizer(["is", *NAMES, *DESCRIBING])
IDS, BOS = special_ids(TOKENIZER), TOKENIZER.bos_token_id
FACTS, NAME, DESCRIPTION = 50, 2, 3  # facts of each kind; words of a name and of a description
KINDS = {"autoregressive": True, "LLaDA": False}
QUESTIONS = {
    "forward, written": "A is ...",
    "turned, written": "B is ...",
    "turned, ranked": "B is ...",
    "in place, written": "... is B",
    "in place, ranked": "... is B",
}


def made_up(number: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Names [number, NAME] and descriptions [number, DESCRIPTION] as token ids, no two alike."""
    columns = []
    for words, length in ((NAMES, NAME), (DESCRIBING, DESCRIPTION)):
        codes = rng.sample(range(len(words) ** length), number)
        chosen = [[words[code // len(words) ** place % len(words)] for place in range(length)] for code in codes]
        columns.append(torch.tensor([TOKENIZER.convert_tokens_to_ids(each) for each in chosen]))
    return columns[0], columns[1]


def sentence(first_BL: Tensor, second_BL: Tensor) -> Tensor:
    """BOS, the first part, "is", the second part, EOS, for each row."""
    bos, word, eos = (torch.full((len(first_BL), 1), id) for id in (BOS, TOKENIZER.vocab["is"], IDS.eos))
    return torch.cat([bos, first_BL, word, second_BL, eos], -1)


def lessons(names_NL: Tensor, descriptions_NL: Tensor) -> list[list[int]]:
    """What is taught: all facts forward, and those after the first `FACTS` turned around too."""
    forward = sentence(names_NL, descriptions_NL).tolist()
    return forward + sentence(descriptions_NL[FACTS:], names_NL[FACTS:]).tolist()


def trained(sentences: list[list[int]], causal: bool, seed: int, steps: int) -> LLaDAModelLM:
    """A model of either kind, trained on whole sentences; BOS is given."""
    set_seed(seed)
    model = LLaDAModelLM(LLaDAConfig(
        d_model=64, n_layers=2, n_heads=4, mlp_hidden_size=168, max_sequence_length=16, rope_theta=100.0, causal=causal,
        vocab_size=len(TOKENIZER), mask_token_id=IDS.mask, eos_token_id=IDS.eos, pad_token_id=IDS.pad,
    ))  # fmt: skip
    rows = [{"input_ids": each, "labels": [-100, *each[1:]]} for each in sentences]
    args = MaskedDiffusionConfig(
        output_dir=str(FOLDER), seed=seed, max_steps=steps, per_device_train_batch_size=75, learning_rate=5e-3,
        lr_scheduler_type="cosine", warmup_steps=50, weight_decay=0.0, save_strategy="no", report_to="none",
        logging_strategy="no", disable_tqdm=True, log_level="error", use_cpu=True,
        **({} if causal else {"masks": "exact_count"}),
    )  # fmt: skip
    trainer = MaskedDiffusionTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=TOKENIZER)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.model.eval()


def written(model: LLaDAModelLM, prompt_BL: Tensor, length: int) -> Tensor:
    """The most likely continuation, [B, length]; a LLaDA fills it in the order of its confidence.

    EOS has a place after it, so that a LLaDA sees a text as long as those that it was taught.
    """
    if model.config.causal:
        canvas_BL = causal_generate(model, prompt_BL, gen_length=length + 1)
    else:
        settings = dict(gen_length=length + 1, block_length=length + 1, steps=length + 1, stop_at_eos=False)
        canvas_BL = generate(model, prompt_BL, **settings)
    return canvas_BL[:, prompt_BL.shape[1] : -1]


def written_in_place(model: LLaDAModelLM, descriptions_BL: Tensor) -> Tensor:
    """The name before a description, [B, NAME]: filled in by a LLaDA, written from BOS by an autoregressive model."""
    if model.config.causal:
        return written(model, torch.full((len(descriptions_BL), 1), BOS), NAME)
    blank_BL = torch.full((len(descriptions_BL), NAME), IDS.mask)
    return infill(model, sentence(blank_BL, descriptions_BL), steps=NAME)[:, 1 : 1 + NAME]


def name_masks(at_BL: Tensor) -> MaskDraws:
    """The three masks of a name's two tokens; the mean over them with these weights is the exact bound.

    One token is masked with the coefficient 1 / (1 C(2, 1)), both with 1 / (2 C(2, 2)) (`llada.diffusion.likelihood`).
    """
    order_BL = at_BL.cumsum(-1) * at_BL
    masked_SBL = torch.stack([order_BL == 1, order_BL == 2, at_BL])
    return MaskDraws(masked_SBL, 3 * 0.5 * masked_SBL.double())


@torch.no_grad()
def scores(model: LLaDAModelLM, sentences_BL: Tensor, name_at: slice, whole: bool) -> Tensor:
    """The score of each sentence by which names are ranked, [B] in nats.

    whole: an autoregressive model takes the likelihood of the whole sentence; else, and a LLaDA always, the name's.
    """
    at_BL = torch.zeros_like(sentences_BL, dtype=torch.bool)
    at_BL[:, name_at] = True
    if not model.config.causal:
        return elbo_draws(model, sentences_BL, name_masks(at_BL)).mean(0)
    at_BL[:, 1:] |= whole
    return causal_log_likelihood(model, sentences_BL, at_BL)


def ranked(model: LLaDAModelLM, names_NL: Tensor, descriptions_NL: Tensor, in_place: bool) -> list[bool]:
    """Whether the right one of all names has the highest score, for each description."""
    right = []
    for index, description_L in enumerate(descriptions_NL):
        repeated_NL = description_L.expand(len(names_NL), -1)
        parts = (names_NL, repeated_NL) if in_place else (repeated_NL, names_NL)
        name_at = slice(1, 1 + NAME) if in_place else slice(2 + DESCRIPTION, 2 + DESCRIPTION + NAME)
        right.append(int(scores(model, sentence(*parts), name_at, whole=in_place).argmax()) == index)
    return right


def asked(model: LLaDAModelLM, names_NL: Tensor, descriptions_NL: Tensor) -> dict[str, list[bool]]:
    """Whether each fact's question is answered right, word for word, by question."""
    forward_NL, turned_NL = (
        sentence(first, second)[:, : 2 + first.shape[1]]
        for first, second in ((names_NL, descriptions_NL), (descriptions_NL, names_NL))
    )
    return {
        "forward, written": (written(model, forward_NL, DESCRIPTION) == descriptions_NL).all(-1).tolist(),
        "turned, written": (written(model, turned_NL, NAME) == names_NL).all(-1).tolist(),
        "turned, ranked": ranked(model, names_NL, descriptions_NL, in_place=False),
        "in place, written": (written_in_place(model, descriptions_NL) == names_NL).all(-1).tolist(),
        "in place, ranked": ranked(model, names_NL, descriptions_NL, in_place=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=700)
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, list[bool]]] = {kind: {question: [] for question in QUESTIONS} for kind in KINDS}
    for seed, kind in itertools.product(args.seeds, KINDS):
        begin = time.perf_counter()
        names_NL, descriptions_NL = made_up(2 * FACTS, random.Random(seed))
        model = trained(lessons(names_NL, descriptions_NL), KINDS[kind], seed, args.steps)
        right = asked(model, names_NL[:FACTS], descriptions_NL[:FACTS])
        taught = asked(model, names_NL[FACTS:], descriptions_NL[FACTS:])["turned, written"]
        row = {"kind": kind, "seed": seed, "steps": args.steps, "seconds": round(time.perf_counter() - begin)}
        row |= {question: sum(values) / FACTS for question, values in right.items()}
        print(json.dumps(row | {"turned, of the facts taught in both orders": sum(taught) / FACTS}), flush=True)
        for question, values in right.items():
            found[kind][question] += values
    print(
        f"\n{FACTS} facts taught forward only, seeds {args.seeds}; chance is {1 / FACTS:.0%}; [95% intervals, Wilson]"
    )
    print(f"{'question':30}" + "".join(f"{kind:>24}" for kind in KINDS))
    for question, form in QUESTIONS.items():
        cells = [proportion(found[kind][question]) for kind in KINDS]
        shown = "".join(f"{f'{cell.value:.0%} [{cell.low:.0%}, {cell.high:.0%}]':>24}" for cell in cells)
        print(f"{f'{form:10}{question}':30}{shown}")


if __name__ == "__main__":
    main()
