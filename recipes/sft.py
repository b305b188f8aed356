"""Fine-tune a LLaDA on prompts and responses: `llada sft` as a script, for `accelerate launch`.

python recipes/sft.py --config recipes/tiny_sft.yaml
"""

from llada.cli import failure
from llada.recipes.sft import main

if __name__ == "__main__":
    failure.run(main)
