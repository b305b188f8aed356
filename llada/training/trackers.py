"""In which group a tracker of `report_to` shows a metric.

transformers puts every metric of training into the group `train`, and every one of an evaluation into `eval`
(`rewrite_logs`). Forty curves in one group are hard to read, so what is said of the estimator, and the loss by masking
probability, have groups of their own: `estimator/score/variance`, `estimator/eval/score/saturated`, `timestep/0.05`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers.integrations import integration_utils

from llada.training.progress import TIMESTEP

ESTIMATOR = ("score/", "noise/", "loss/", "masked_fraction")  # how the names of the estimator's metrics begin


def grouped(logs: dict[str, Any], others) -> dict[str, Any]:
    """A log line as trackers get it. others: names all other metrics, as transformers' `rewrite_logs` does."""
    found, left = {}, {}
    for name, value in logs.items():
        plain = name.removeprefix("eval_")
        if name.startswith(TIMESTEP):
            found[plain] = value
        elif plain.startswith(ESTIMATOR):
            found[f"estimator/{plain}" if plain == name else f"estimator/eval/{plain}"] = value
        else:
            left[name] = value
    return found | others(left)


@contextlib.contextmanager
def estimator_grouped() -> Iterator[None]:
    """Let the trackers of transformers name metrics by `grouped` in what is logged here.

    Their callbacks (wandb, trackio, tensorboard and others) have no option for it, and all of them call one function of
    their module, which is replaced for the time of a call. Other trainers in the process do not notice.
    """
    names = integration_utils.rewrite_logs
    integration_utils.rewrite_logs = lambda logs: grouped(logs, names)
    try:
        yield
    finally:
        integration_utils.rewrite_logs = names
