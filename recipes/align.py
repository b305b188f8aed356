"""Align a LLaDA with preference pairs: `vrpo align` as a script, for `accelerate launch`.

python recipes/align.py --config recipes/tiny_vrpo.yaml
"""

from llada.cli import failure
from vrpo.recipes.align import main

if __name__ == "__main__":
    failure.run(main)
