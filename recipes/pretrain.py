"""Pretrain a LLaDA on documents: `llada pretrain` as a script, for `accelerate launch`.

python recipes/pretrain.py --config recipes/tiny_pretrain.yaml
"""

from llada.cli import failure
from llada.recipes.pretrain import main

if __name__ == "__main__":
    failure.run(main)
