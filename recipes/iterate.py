"""Rounds of sampling, judging and training: `vrpo iterate` as a script, for `accelerate launch`.

python recipes/iterate.py --config recipes/tiny_iterate.yaml --prompts FILE.jsonl --reward FILE.py:function
"""

from llada.cli import failure
from vrpo.recipes.iterate import main

if __name__ == "__main__":
    failure.run(main)
