"""A dialogue with a model in a terminal that shows answers while they are denoised."""

import sys
import time
from collections.abc import Iterable, Iterator

import torch
from rich.console import Console
from rich.live import Live
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llada.cli.adapters import base_of
from llada.cli.arguments import ChatArguments, SamplerOptions, fit_context, note
from llada.cli.checkpoint import load_config, load_model
from llada.data.tokenizer import Prompt
from llada.data.turns import speaks_in_turns
from llada.sampling.block_cache import SamplerStats
from llada.sampling.loop import generate
from llada.sampling.settings import SamplerSettings
from llada.sampling.text import before_end, ends_of, left_padded

MASK = "▒"
LEAVE = ("exit", "quit", "/exit", "/quit")
HELP = """/new   forget the dialogue and start another
/help  this list
exit   leave (also quit, an empty line, Ctrl-D or Ctrl-C)"""
NO_ANSWER = (
    "(the model ended its answer at once: try a shorter --gen_length; if it does so often, it needs more training)"
)
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
    """One dialogue with a model.

    Args:
        plain: the model continues each line as it is, without the chat template and without the lines before it.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: SamplerSettings, plain: bool = False
    ):
        self.model, self.tokenizer, self.settings, self.plain = model, tokenizer, settings, plain
        self.messages: list[dict[str, str]] = []
        self.hidden = set(tokenizer.all_special_ids)
        self.ends = ends_of(tokenizer, model.denoiser_spec)

    def say(self, text: str, show=None) -> tuple[str, SamplerStats, float]:
        """Add the user's turn and the model's answer; return the answer, its statistics and the seconds that it took.

        Args:
            show: called with a `Text` after every step.

        Raises:
            ValueError: dialogue and answer do not fit the model's context, or the text is refused; the
                turn is then not added.
            FloatingPointError: the model's logits are nan or infinite.
        """
        turn = [*self.messages, {"role": "user", "content": text}]
        prompt: Prompt = text if self.plain else turn
        spec = self.model.denoiser_spec
        ids, mask = left_padded(self.tokenizer, [prompt], spec.eos_id, self.model.device)
        width = ids.shape[1]

        def on_step(canvas_BL: Tensor, confidence_BL: Tensor) -> None:
            row, sure = before_end(canvas_BL[0, width:].tolist(), self.ends), confidence_BL[0, width:].tolist()
            show(frame(self.tokenizer, row, sure[: len(row)], spec.mask_id, self.hidden))

        start = time.perf_counter()
        canvas, stats = generate(
            self.model, ids, mask, self.settings, on_step=on_step if show else None, return_stats=True
        )
        seconds = time.perf_counter() - start
        answered = before_end(canvas[0, width:].tolist(), self.ends)
        answer = self.tokenizer.decode(answered, skip_special_tokens=True).strip()
        if not self.plain:
            self.messages = [*turn, {"role": "assistant", "content": answer}]
        return answer, stats, seconds


def obey(chat: Chat, console: Console, text: str) -> bool:
    """Carry out a command that begins with "/"; False if it is none: paths and fractions are for the model."""
    if text == "/new":
        chat.messages = []
    elif text == "/help":
        console.print(HELP, style="dim", markup=False, highlight=False)
    elif text[0] == "/" and text[1:].isalpha():
        console.print(f"{text} is no command; /help lists them", style="red", markup=False)
    else:
        return False
    return True


def talk(chat: Chat, console: Console, lines: Iterable[str], live: bool) -> None:
    """Answer each line and print the answer, until an empty line or a word that leaves.

    live: show an answer while it is denoised, and figures about it, for terminals.
    """
    for line in lines:
        text = line.strip()
        if not text or text in LEAVE:
            return
        if obey(chat, console, text):
            continue
        try:
            if live:
                with Live(console=console, refresh_per_second=30) as shown:
                    answer, stats, seconds = chat.say(text, shown.update)
            else:
                answer, stats, seconds = chat.say(text)
                console.print(answer or NO_ANSWER, markup=False, highlight=False)
        except ValueError as error:
            console.print(f"{error}: /new starts over", style="red", markup=False)
            continue
        if live and not answer:
            console.print(NO_ANSWER, style="dim")
        elif live:
            tokens = max(1, len(chat.tokenizer(answer, add_special_tokens=False).input_ids))
            console.print(
                f"{tokens} tokens, {tokens / seconds:.1f} tokens/s, {stats.forwards / tokens:.2f} forwards a token",
                style="dim",
            )


def lines_of(console: Console, live: bool) -> Iterator[str]:
    """The user's lines, until the input ends."""
    while True:
        try:
            yield console.input("[bold]> [/bold]") if live else sys.stdin.readline()
        except EOFError:
            return


def banner(name: str, settings: SamplerSettings, plain: bool) -> str:
    """Two lines: the model and its settings; what a line of input is, and how to leave."""
    model = name if base_of(name) == name else f"{name} (adapters on {base_of(name)})"
    rules = {"threshold": settings.threshold, "factor": settings.factor}
    rule = next((f"{key}={value:g}" for key, value in rules.items() if value is not None), f"steps={settings.steps}")
    lengths = f"gen_length={settings.gen_length}, block_length={settings.block_length}, {rule}"
    use = "Each line is continued as it is, without a chat template" if plain else "Your turns and the answers are kept"
    return (
        f"{model}: {lengths}, temperature={settings.temperature:g}\n{use}. /help lists commands; exit or Ctrl-D leaves."
    )


def run(args: ChatArguments, options: SamplerOptions, settings: SamplerSettings) -> None:
    """Load a model and hold a dialogue on standard input and output."""
    tokenizer, config = load_config(args.model)
    settings = fit_context(settings, args, options, config.denoiser_spec.context)
    plain = not speaks_in_turns(tokenizer) if args.plain is None else args.plain
    model = load_model(args.model, config)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    live, console = sys.stdout.isatty(), Console()
    if live:
        console.print(banner(args.model, settings, plain), style="dim", markup=False, highlight=False)
    else:  # standard output is for answers alone
        note(banner(args.model, settings, plain))
    talk(Chat(model, tokenizer, settings, plain), console, lines_of(console, live), live)
