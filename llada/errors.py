"""Errors that a user can fix: each message names the file, row, option or value, and what is allowed."""

SINGULAR = {"have": "has", "are": "is"}


class PairError(ValueError):
    """A prompt or completion that cannot be trained on.

    part: "prompt" or "completion". flaw: what is wrong, as what rows have, such as "have an empty {part}", in which
    "{part}" stands for the name of the column. detail: what is special to this example, or "".
    """

    def __init__(self, part: str, flaw: str, detail: str = ""):
        message = f"an example must not {flaw.format(part=repr(part))}"
        super().__init__(f"{message}: {detail}" if detail else message)
        self.part, self.flaw, self.detail = part, flaw, detail

    @property
    def of_row(self) -> str:
        """What is wrong, as what a row has or is: "has an empty 'prompt'"."""
        verb, rest = self.flaw.format(part=repr(self.part)).split(" ", 1)
        return f"{SINGULAR[verb]} {rest}{f': {self.detail}' if self.detail else ''}"


class DataError(ValueError):
    """Rows that cannot be trained on; the message names their source, what is wrong with them and their numbers."""


class RecipeError(ValueError):
    """An invalid recipe option; the message names the option and what is allowed."""


class OutputError(OSError):
    """An output directory that cannot be written or is in use; the message names it and the cause."""
