"""Talk to a model in a terminal and watch it fill in its answer.

    python -m llada.chat --model PATH [--gen_length 128] [--cache dual] [--threshold 0.9] [--plain]

Sampler settings come from the model's directory or `--preset`; options (the fields of `llada.SamplerSettings`) override
them. Masked tokens are grey blocks; a token appears when it is committed, coloured by its confidence from red (low) to
green. Tokens per second and forward passes per token follow each answer. `/new` starts another dialogue; an empty line
or Ctrl-D ends. With `--plain`, or if the output is no terminal, answers are printed when complete, without colours.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from llada.cli.arguments import SamplerOptions, sampler_settings


@dataclass
class Arguments:
    model: str = field(metadata={"help": "Model directory or hub name."})
    preset: str | None = field(default=None, metadata={"help": "Published sampler settings, such as llada-1.5/gsm8k."})
    plain: bool = field(default=False, metadata={"help": "Print without colours and animation, for pipes."})


def main() -> None:
    """Run the command: parse the options, load the model and start the dialogue."""
    parser = HfArgumentParser([Arguments, SamplerOptions], description=__doc__.splitlines()[0])
    args, options = parser.parse_args_into_dataclasses()
    settings = sampler_settings(args, options)
    settings.check_blocks()
    from llada.cli import chat  # imported after the options are parsed: it imports torch and transformers

    chat.run(args.model, settings, args.plain)


if __name__ == "__main__":
    main()
