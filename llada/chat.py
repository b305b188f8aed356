"""Talk to a model in a terminal and watch it fill in its answer.

    llada chat --model PATH [--gen_length 128] [--cache dual] [--threshold 0.9] [--plain]

PATH is a model or a directory of adapters. Sampler settings come from its directory or `--preset`; options (the fields
of `llada.SamplerSettings`) override them. Masked tokens are grey blocks; a token appears when it is committed, coloured
by its confidence from red (low) to green. Tokens per second and forward passes per token follow each answer. `/help`
lists commands; `exit`, an empty line, Ctrl-D or Ctrl-C leave. With `--plain` a line is continued as it is, without the
chat template; a model that was trained on plain text is sampled so by itself, and `--plain false` applies the template.
If the output is no terminal, answers are printed when complete, without colours.
"""

from llada.cli import failure
from llada.cli.arguments import IMPORTING, ChatArguments, SamplerOptions, sampler_settings, saying
from llada.cli.recipe import RecipeParser, parse

OPTIONS = (ChatArguments, SamplerOptions)


def parser() -> RecipeParser:
    """The parser of all options."""
    return RecipeParser(OPTIONS, __doc__)


def main(argv: list[str] | None = None) -> None:
    """Run the command: parse the options, load the model and start the dialogue."""
    args, options = parse(OPTIONS, argv, __doc__)
    try:
        settings = sampler_settings(args, options)
        with saying(IMPORTING):
            from llada.cli import chat  # imported after the options are parsed

        chat.run(args, options, settings)
    except KeyboardInterrupt:
        print()


if __name__ == "__main__":
    failure.run(main)
