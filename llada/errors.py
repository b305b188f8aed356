"""Errors that a user can fix: each message names the file, row, option or value, and what is allowed."""


class PairError(ValueError):
    """A prompt or completion that cannot be trained on; `part` is "prompt" or "completion"."""

    def __init__(self, part: str, message: str):
        super().__init__(message)
        self.part = part


class DataError(ValueError):
    """A row that cannot be trained on; the message names its source, row and column."""


class RecipeError(ValueError):
    """An invalid recipe option; the message names the option and what is allowed."""
