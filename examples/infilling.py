"""Infilling: one model fills a gap at the beginning of a text, in its middle or at its end, or several gaps at once.

    python examples/infilling.py        (about five seconds on a CPU, and as long to import torch)

A masked diffusion model is trained with gaps at all places, so a gap may stand before what decides it. `llada.infill`
takes texts with mask tokens, fills these and keeps all other tokens; as many masks, as many tokens. Here a small model,
whose tokens are words, learns sixteen sentences by heart. It prints:

    ____ is the capital of Norway .          Oslo is the capital of Norway .          one of the sentences
    Madrid is the capital of ____ .          Madrid is the capital of Spain .         one of the sentences
    Nile is the ____ ____ of Egypt .         Nile is the longest river of Egypt .     one of the sentences
    ____ ____ ____ longest river of Japan .  Shinano is the longest river of Japan .  one of the sentences
    Loire ____ ____ ____ ____ of ____ .      Loire is the longest river of France .   one of the sentences
"""

import torch

import llada
from llada.diffusion.masking import draw_masks

TEXTS = """
Paris is the capital of France . | Rome is the capital of Italy . | Madrid is the capital of Spain .
Oslo is the capital of Norway . | Cairo is the capital of Egypt . | Lima is the capital of Peru .
Tokyo is the capital of Japan . | Delhi is the capital of India . | Berlin is the capital of Germany .
Nile is the longest river of Egypt . | Po is the longest river of Italy . | Loire is the longest river of France .
Tagus is the longest river of Spain . | Glomma is the longest river of Norway . | Ganges is the longest river of India .
Shinano is the longest river of Japan .
"""
SENTENCES = [line.split() for text in TEXTS.strip().splitlines() for line in text.split(" | ")]
WORDS = sorted({word for sentence in SENTENCES for word in sentence})
MASK, EOS, LENGTH = len(WORDS), len(WORDS) + 1, 8
GAPS = (
    "____ is the capital of Norway .",  # the answer follows from what stands after the gap
    "Madrid is the capital of ____ .",
    "Nile is the ____ ____ of Egypt .",
    "____ ____ ____ longest river of Japan .",
    "Loire ____ ____ ____ ____ of ____ .",
)


def encode(words: list[str]) -> list[int]:
    """Token ids of words, "____" as MASK, with EOS up to LENGTH."""
    ids = [MASK if word == "____" else WORDS.index(word) for word in words]
    return ids + [EOS] * (LENGTH - len(ids))


def decode(ids: torch.Tensor) -> str:
    return " ".join(WORDS[token] for token in ids if token != EOS)


def main(steps: int = 200) -> list[str]:
    """Learn the sentences, fill the gaps, print and return the filled texts."""
    torch.manual_seed(0)
    config = llada.LLaDAConfig(
        d_model=64, n_layers=2, n_heads=4, mlp_hidden_size=128, vocab_size=len(WORDS) + 2, max_sequence_length=LENGTH,
        rope_theta=100.0, mask_token_id=MASK, eos_token_id=EOS, pad_token_id=EOS,
    )  # fmt: skip
    model = llada.LLaDAModelLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens_BL = torch.tensor([encode(sentence) for sentence in SENTENCES]).repeat(4, 1)
    for step in range(steps):
        generators = [llada.generator_for(step, row) for row in range(len(tokens_BL))]
        draws = draw_masks(torch.ones_like(tokens_BL, dtype=torch.bool), generators, n_t=1)
        loss = -llada.elbo_draws(model, tokens_BL, draws).mean() / LENGTH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    gaps_BL = torch.tensor([encode(text.split()) for text in GAPS])
    filled_BL = llada.infill(model.eval(), gaps_BL, steps=LENGTH, block_length=LENGTH)  # the surest word first
    filled = [decode(filled_L) for filled_L in filled_BL]
    for gap, text in zip(GAPS, filled, strict=True):
        known = "one of the sentences" if text.split() in SENTENCES else "none of the sentences"
        print(f"{gap:40} {text:40} {known}")
    return filled


if __name__ == "__main__":
    main()
