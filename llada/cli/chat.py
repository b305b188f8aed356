"""A dialogue with a model in a terminal that shows answers while they are denoised."""

import sys
import time

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from llada.cli.checkpoint import load_config
from llada.data.tokenizer import before_eos
from llada.sampling.block_cache import SamplerStats
from llada.sampling.loop import generate
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import left_padded

MASK = "▒"
COLOURS = ((0.5, "red"), (0.8, "yellow"), (1.01, "green"))  # for confidence below each bound


def frame(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], confidences: list[float], mask_id: int, hidden: set[int]
) -> Text:
    """Render a partial answer. Tokens of one colour are decoded together, so that no multi-token character is split."""
    text, run, style = Text(), list[int](), ""

    def flush() -> None:
        text.append(tokenizer.decode(run), style)
        run.clear()

    for token, confidence in zip(ids, confidences, strict=True):
        if token == mask_id:
            flush()
            text.append(MASK, "dim")
        elif token not in hidden:
            colour = next(name for limit, name in COLOURS if confidence < limit)
            if colour != style:
                flush()
            style = colour
            run.append(token)
    flush()
    return text


class Chat:
    """One dialogue with a model."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: SamplerSettings):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings
        self.messages: list[dict[str, str]] = []
        self.hidden = set(tokenizer.all_special_ids)

    def say(self, text: str, show=None) -> tuple[str, SamplerStats, float]:
        """Add the user's turn and the model's answer; return the answer, its statistics and the seconds that it took.

        Args:
            show: called with a `Text` after every step.

        Raises:
            ValueError: dialogue and answer do not fit the model's context; the turn is then not added.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        spec = self.model.denoiser_spec
        ids, mask = left_padded(self.tokenizer, [turn], spec.eos_id, self.model.device)
        width = ids.shape[1]

        def on_step(canvas_BL: Tensor, confidence_BL: Tensor) -> None:
            row, sure = before_eos(canvas_BL[0, width:].tolist(), spec.eos_id), confidence_BL[0, width:].tolist()
            show(frame(self.tokenizer, row, sure[: len(row)], spec.mask_id, self.hidden))

        start = time.perf_counter()
        canvas, stats = generate(
            self.model, ids, mask, self.settings, on_step=on_step if show else None, return_stats=True
        )
        seconds = time.perf_counter() - start
        answered = before_eos(canvas[0, width:].tolist(), spec.eos_id)
        answer = self.tokenizer.decode(answered, skip_special_tokens=True).strip()
        self.messages = [*turn, {"role": "assistant", "content": answer}]
        return answer, stats, seconds


def talk(chat: Chat, console: Console, lines, plain: bool) -> None:
    """Answer each line and print the answer, until an empty line."""
    for line in lines:
        text = line.strip()
        if not text:
            return
        if text == "/new":
            chat.messages = []
            continue
        try:
            if plain:
                answer, stats, seconds = chat.say(text)
                console.print(answer, markup=False, highlight=False)
            else:
                with Live(console=console, refresh_per_second=30) as live:
                    answer, stats, seconds = chat.say(text, live.update)
        except ValueError as error:
            console.print(f"{error}: /new starts over", style="red", markup=False)
            continue
        if not plain:
            tokens = max(1, len(chat.tokenizer(answer, add_special_tokens=False).input_ids))
            console.print(
                f"{tokens} tokens, {tokens / seconds:.1f} tokens/s, {stats.forwards / tokens:.2f} forwards a token",
                style="dim",
            )


def lines_of(console: Console, plain: bool):
    """The user's lines, until the input ends."""
    while True:
        try:
            yield sys.stdin.readline() if plain else console.input("[bold]> [/bold]")
        except EOFError:
            return


def run(model_name: str, settings: SamplerSettings, plain: bool) -> None:
    """Load a model and hold a dialogue on standard input and output."""
    tokenizer, config = load_config(model_name)
    model = AutoModelForCausalLM.from_pretrained(model_name, config=config, dtype="auto").eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    plain, console = plain or not sys.stdout.isatty(), Console()
    talk(Chat(model, tokenizer, settings), console, lines_of(console, plain), plain)
