"""The console command `vrpo`: `vrpo align ...`, `python -m vrpo align ...`, `accelerate launch -m vrpo align ...`."""

from llada.cli import console, failure

COMMANDS = {
    "align": ("vrpo.recipes.align", "train a model on preference pairs"),
    "check": ("vrpo.check", "list the rows of a data file that cannot be used, and the lengths of the others"),
    "variance": ("vrpo.variance", "how noisy the scores of a model's pairs are, and which design and n to take"),
    "make-pairs": ("vrpo.recipes.make_pairs", "sample answers, check them, and write right and wrong ones as pairs"),
    "iterate": ("vrpo.recipes.iterate", "rounds of sampling, judging and training"),
    "winrate": ("vrpo.recipes.winrate", "how often a model's answers are preferred to another's"),
    "report": ("vrpo.report.__main__", "the page of a run, or of several beside each other"),
}


def main() -> None:
    """Run the command as a script: an error for its user is one message."""
    failure.run(lambda: console.run("vrpo", "Preference optimization of masked diffusion models.", COMMANDS))


if __name__ == "__main__":
    main()
