"""Make preference pairs of a model's answers: `vrpo make-pairs` as a script, for `accelerate launch`.

python recipes/make_pairs.py --model runs/tiny_sft --prompts FILE.jsonl --output pairs.jsonl
"""

from llada.cli import failure
from vrpo.recipes.make_pairs import main

if __name__ == "__main__":
    failure.run(main)
