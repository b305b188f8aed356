"""Samples before and after training as a table of the trackers of `report_to` that have tables."""

import logging
import textwrap
from collections.abc import Iterable
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

logger = logging.getLogger(__name__)

COLUMNS = ("prompt", "before", "after", "given")


def rows_of(samples: list[dict[str, Any]]) -> list[list[str]]:
    """A row of `COLUMNS` for each prompt of `samples.json`; "before" is empty if the samples before training failed."""
    first, last = samples[0], samples[-1]
    before = [old["answer"] if first["step"] == 0 else "" for old in first["answers"]]
    return [
        [new["prompt"], old, new["answer"], new["given"] or ""]
        for old, new in zip(before, last["answers"], strict=True)
    ]


def log_table(callbacks: Iterable[TrainerCallback], samples: list[dict[str, Any]], step: int) -> None:
    """Log the samples with each tracker that is running: a table of wandb or trackio, or text of tensorboard.

    A tracker that fails is a warning: the last step of the run is not saved yet.
    """
    rows = rows_of(samples)
    for callback in callbacks:
        try:
            log_rows(callback, rows, step)
        except Exception as error:
            logger.warning(
                "%s has not got the samples (%s: %s); samples.json has them",
                type(callback).__name__, type(error).__name__, error,
            )  # fmt: skip


def log_rows(callback: TrainerCallback, rows: list[list[str]], step: int) -> None:
    """Log rows of `COLUMNS` with a callback, if it is a tracker that is running."""
    if isinstance(callback, WandbCallback) and callback._wandb is not None and callback._wandb.run is not None:
        table = callback._wandb.Table(columns=list(COLUMNS), data=rows)
        callback._wandb.log({"samples": table, "train/global_step": step})
    elif isinstance(callback, TrackioCallback) and callback._initialized:
        from pandas import DataFrame

        table = callback._trackio.Table(dataframe=DataFrame(rows, columns=list(COLUMNS)))
        callback._trackio.log({"samples": table, "train/global_step": step})
    elif isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
        for number, row in enumerate(rows):
            # Indented by four, which Markdown shows as it is.
            parts = (f"{name}\n\n{textwrap.indent(text, '    ')}" for name, text in zip(COLUMNS, row, strict=True))
            callback.tb_writer.add_text(f"samples/{number}", "\n\n".join(parts), step)
