"""Answers of a model to a few fixed prompts, with the confidence of each token and when it was committed."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llada.record.rows import Asked
from llada.sampling.left_to_right import causal_generate
from llada.sampling.loop import generate
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import before_end, ends_of
from llada.training.base import DiffusionTrainerBase

LONGEST, BLOCK = 64, 32  # tokens of an answer and of a block, at most
SPLIT = "�"  # what a tokenizer decodes a part of a character to
DIGITS = 4  # of a recorded confidence


@dataclass
class Trace:
    """Which forward pass has committed each token, and with what confidence, [B, G] each; an `on_step` of a sampler.

    width: of the prompts. first_B: the first token that is not written yet, of a model that writes from the left.
    """

    width: int
    mask_id: int | None  # None: the model writes from the left
    passes: int = 0

    def __call__(self, canvas_BL: Tensor, confidence_BL: Tensor) -> None:
        canvas_BG, confidence_BG = canvas_BL[:, self.width :].cpu(), confidence_BL[:, self.width :].cpu()
        if not self.passes:
            self.order_BG = torch.full(canvas_BG.shape, -1)
        if self.mask_id is None:
            written_BG = torch.zeros_like(canvas_BG, dtype=torch.bool)
            written_BG[:, self.passes] = True
        else:
            written_BG = canvas_BG != self.mask_id
        self.order_BG[written_BG & (self.order_BG < 0) & (confidence_BG > 0)] = self.passes
        self.confidence_BG = confidence_BG.clone()
        self.passes += 1

    def orders(self) -> Tensor:
        """The pass of each token [B, G]. EOS that filled the rest of an answer came with its last token."""
        last_B = self.order_BG.amax(-1).clamp(min=0)
        return torch.where(self.order_BG < 0, last_B[:, None], self.order_BG)


def settings_for(rows: list[Asked], context: int) -> SamplerSettings:
    """Greedy sampling, one token a pass, of answers as long as the longest given one, or of whole blocks beyond one."""
    longest = max(len(answer or []) for row in rows for answer in (row.given, row.rejected))
    room = context - max(len(row.prompt) for row in rows)
    length = max(1, min(longest, LONGEST, room))
    if length > BLOCK:
        length = min(-(-length // BLOCK), room // BLOCK) * BLOCK
    return SamplerSettings(gen_length=length, steps=length, block_length=min(BLOCK, length))


def sample(trainer: DiffusionTrainerBase, module: nn.Module, rows: list[Asked]) -> dict[str, Any]:
    """The settings of the sampler, and the answer to each prompt, as `samples.json` has them.

    Args:
        module: the model without the wrappers of engines and of PEFT.

    Raises:
        ValueError, FloatingPointError: see `llada.generate`.
    """
    spec, tokenizer = trainer.spec, trainer.processing_class
    settings = settings_for(rows, spec.context)
    ids_BP, real_BP = left_padded_ids([row.prompt for row in rows], spec.pad_id or 0, trainer.args.device)
    causal = spec.attention == "causal"
    trace = Trace(ids_BP.shape[1], None if causal else spec.mask_id)
    if causal:
        length = settings.gen_length
        canvas_BL = causal_generate(
            module, ids_BP, real_BP, gen_length=length, eos_token_id=spec.eos_id, on_step=trace
        )  # fmt: skip
        used: dict[str, Any] = {"gen_length": length, "temperature": 0.0}
    else:
        canvas_BL = generate(trainer.denoiser(module), ids_BP, real_BP, settings, on_step=trace)
        used = asdict(settings)
    answers = [
        answer_of(tokenizer, row, written, ends_of(tokenizer, spec))
        | {"tokens": tokens_of(tokenizer, written, confidence, order)}
        for row, written, confidence, order in zip(
            rows, canvas_BL[:, trace.width :].tolist(), trace.confidence_BG.tolist(), trace.orders().tolist(),
            strict=True,
        )
    ]  # fmt: skip
    return {"settings": used, "answers": answers}


def left_padded_ids(prompts: list[list[int]], pad_id: int, device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask of prompts of ids, [B, P] each, padded on the left."""
    width = max(map(len, prompts))
    ids = [[pad_id] * (width - len(prompt)) + prompt for prompt in prompts]
    real = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(real, device=device)


def answer_of(tokenizer, row: Asked, written: list[int], ends: set[int]) -> dict[str, Any]:
    """The texts of an answer: the prompt with its special tokens, as the model gets it, and the rest without.

    "length" is how many of the tokens are the answer: the others stand after its end.
    """

    def text(ids: list[int] | None) -> str | None:
        return None if ids is None else tokenizer.decode(before_end(ids, ends), skip_special_tokens=True)

    return {
        "prompt": tokenizer.decode(row.prompt, skip_special_tokens=False),
        "given": text(row.given) or None,
        "given_rejected": text(row.rejected),
        "answer": text(written),
        "length": len(before_end(written, ends)),
    }


def tokens_of(tokenizer, ids: list[int], confidences: list[float], orders: list[int]) -> list[dict[str, Any]]:
    """Text, confidence and forward pass of each token, special ones included.

    The texts joined are the decoded ids: a token's text is what it adds to that of the tokens before it, with the space
    that some tokenizers put between words. A character of several tokens is the text of its last one; the text of the
    others is empty.
    """
    texts, shown, waiting = [""] * len(ids), "", 0
    for index in range(len(ids)):
        text, waiting = tokenizer.decode(ids[: index + 1], skip_special_tokens=False), waiting + 1
        if not text.endswith(SPLIT) or waiting == 4 or index + 1 == len(ids):  # UTF-8 has up to four bytes
            texts[index], shown, waiting = text[len(shown) :], text, 0
    return [
        {"text": text, "confidence": round(confidence, DIGITS), "order": order}
        for text, confidence, order in zip(texts, confidences, orders, strict=True)
    ]
