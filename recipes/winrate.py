"""Compare two models' answers: `vrpo winrate` as a script.

python recipes/winrate.py --completions a.jsonl --baseline b.jsonl --reward FILE.py:function
"""

from llada.cli import failure
from vrpo.recipes.winrate import main

if __name__ == "__main__":
    failure.run(main)
