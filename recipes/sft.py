"""Fine-tune a LLaDA on prompts and responses (SFT; LLaDA, arXiv 2502.09992, Alg. 2).

python recipes/sft.py --config recipes/tiny_sft.yaml
"""

import llada
from llada.cli import failure
from llada.cli.arguments import IMPORTING, saying
from llada.cli.recipe import short_help
from llada.training.options import MaskedDiffusionOptions

COLUMNS = (("prompt", "completion"), ("messages",))


def main(argv: list[str] | None = None) -> None:
    short_help(MaskedDiffusionOptions, __doc__, argv)
    with saying(IMPORTING):
        from llada.cli import train

        trainer, config = llada.MaskedDiffusionTrainer, llada.MaskedDiffusionConfig
    train.main(trainer, config, COLUMNS, argv)


if __name__ == "__main__":
    failure.run(main)
