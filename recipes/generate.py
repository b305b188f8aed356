"""Answer the prompts of a file: `llada generate` as a script, for `accelerate launch`.

python recipes/generate.py --model runs/tiny_sft --prompts FILE.jsonl --output completions.jsonl
"""

from llada.cli import failure
from llada.recipes.generate import main

if __name__ == "__main__":
    failure.run(main)
