"""Evaluate a model as the papers did: `llada evaluate` as a script, for `accelerate launch`.

python recipes/evaluate.py --suite llada-1.5 --model PATH --output runs/evaluation
"""

import sys
from pathlib import Path

from llada.cli import failure
from llada.recipes.evaluate import main

# Python puts a script's folder first on its path, where this file would take the place of the package `evaluate`.
sys.path[:] = [folder for folder in sys.path if Path(folder).resolve() != Path(__file__).resolve().parent]

if __name__ == "__main__":
    failure.run(main)
