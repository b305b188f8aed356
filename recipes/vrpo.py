"""Align a LLaDA with preference pairs (VRPO; LLaDA 1.5, arXiv 2505.19223).

accelerate launch recipes/vrpo.py --config recipes/tiny_vrpo.yaml
"""

import sys
from pathlib import Path

# A script's folder leads the import path, and this script has the name of the package: `vrpo` must not be this file.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

from trl import ModelConfig

from llada import launch
from llada.inputs import RecipeArguments
from vrpo import VRPOConfig, VRPOTrainer

ARGUMENTS = (RecipeArguments, ModelConfig, VRPOConfig)
COLUMNS = (("prompt", "chosen", "rejected"), ("chosen", "rejected"))


def main(argv: list[str] | None = None) -> None:
    launch.main(VRPOTrainer, ARGUMENTS, COLUMNS, argv)


if __name__ == "__main__":
    main()
