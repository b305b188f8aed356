"""Talk to a model in a terminal and watch it fill in its answer.

    python -m llada.chat --model PATH [--gen_length 128] [--cache dual] [--threshold 0.9] [--plain]

Settings are those saved with the model or a `--preset`, with any of `llada.SamplerSettings` that is given in its place.
Masks are blocks, tokens appear where and when they are committed, from red (unsure) to green. Under each answer:
tokens a second, and forward passes for each token. `/new` starts another dialogue, an empty line or Ctrl-D ends. With
`--plain` (or where the output is no terminal) answers are written once, without colours.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from llada.cli.arguments import SamplerOptions, sampler_settings


@dataclass
class Arguments:
    model: str = field(metadata={"help": "A saved model, or a hub name."})
    preset: str | None = field(default=None, metadata={"help": "Published settings, such as llada-1.5/gsm8k."})
    plain: bool = field(default=False, metadata={"help": "No colours and no animation, for pipes."})


def main() -> None:
    """The command: load a model and talk."""
    parser = HfArgumentParser([Arguments, SamplerOptions], description=__doc__.splitlines()[0])
    args, options = parser.parse_args_into_dataclasses()
    settings = sampler_settings(args, options)
    settings.check_blocks()
    from llada.cli import chat  # after the options: it loads the models

    chat.run(args.model, settings, args.plain)


if __name__ == "__main__":
    main()
