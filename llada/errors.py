"""The errors that a user can mend: each message names the file, row, option or value, and what is allowed."""


class PairError(ValueError):
    """A prompt or completion that cannot be trained on; `part` says which of the two."""

    def __init__(self, part: str, message: str):
        super().__init__(message)
        self.part = part


class DataError(ValueError):
    """A row that cannot be trained on; the message names source, row and column."""


class RecipeError(ValueError):
    """A setting of a recipe that cannot work; the message names the option and what is allowed."""
