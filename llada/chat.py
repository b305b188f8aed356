"""Talk to a model in a terminal and watch it fill in its answer.

    python -m llada.chat --model PATH [--gen_length 128] [--cache dual] [--threshold 0.9] [--plain]

Settings are those saved with the model or a `--preset`, with any of `llada.SamplerSettings` that is given in its place.
Masks are blocks, tokens appear where and when they are committed, from red (unsure) to green. Under each answer:
tokens a second, and forward passes for each token. `/new` starts another dialogue, an empty line or Ctrl-D ends. With
`--plain` (or where the output is no terminal) answers are written once, without colours.
"""

import sys
import time
from dataclasses import dataclass, field

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor
from transformers import AutoModelForCausalLM, HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase

import llada  # noqa: F401  (registers the family)
from llada.cli.arguments import SamplerFlags, settings_of
from llada.cli.loading import load_config
from llada.data.tokenizer import before_eos
from llada.sampling.block_cache import SamplerStats
from llada.sampling.loop import generate
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import left_padded

MASK = "▒"
COLOURS = ((0.5, "red"), (0.8, "yellow"), (1.01, "green"))  # of a token committed with confidence below


def frame(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], confidences: list[float], mask_id: int, hidden: set[int]
) -> Text:
    """An answer in the making: runs of tokens of one colour decoded together, so that no character is cut in two."""
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
        """Add the user's turn and the model's answer; the answer, what it cost, and seconds.

        Args:
            show: called with a `Text` after every step.

        Raises:
            ValueError: the dialogue and the answer do not fit the model's context; the turn is not added.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        spec = self.model.denoiser_spec
        ids, mask = left_padded(self.tokenizer, [turn], self.model.device)
        width = ids.shape[1]

        def on_step(canvas_BL: Tensor, sure_BL: Tensor) -> None:
            row, sure = before_eos(canvas_BL[0, width:].tolist(), spec.eos_id), sure_BL[0, width:].tolist()
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
    """Answer each line until an empty one."""
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


@dataclass
class Arguments:
    model: str = field(metadata={"help": "A saved model, or a hub name."})
    preset: str | None = field(default=None, metadata={"help": "Published settings, such as llada-1.5/gsm8k."})
    plain: bool = field(default=False, metadata={"help": "No colours and no animation, for pipes."})


def main() -> None:
    """The command: load a model and talk."""
    parser = HfArgumentParser([Arguments, SamplerFlags], description=__doc__.splitlines()[0])
    args, flags = parser.parse_args_into_dataclasses()
    settings = settings_of(args, flags)
    settings.check_blocks()
    tokenizer, config = load_config(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, config=config, dtype="auto").eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    plain = args.plain or not sys.stdout.isatty()
    console = Console()
    talk(Chat(model, tokenizer, settings), console, lines_of(console, plain), plain)


if __name__ == "__main__":
    main()
