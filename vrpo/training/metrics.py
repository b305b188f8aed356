"""Metrics of preference training, under TRL's names."""

from transformers.trainer_utils import EvalPrediction

WITH_INTERVAL = ("rewards/accuracies", "rewards/margins", "logps/accuracies")


def mean_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Means over the evaluation set; `predictions` maps metric names to one value for each pair.

    Those of `WITH_INTERVAL` come with `_ci95`, half the width of the normal 95% interval over pairs.
    """
    metrics = {name: float(values.mean()) for name, values in prediction.predictions.items()}
    for name in WITH_INTERVAL:
        values = prediction.predictions[name]
        metrics[f"{name}_ci95"] = (
            float(1.96 * values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")
        )
    return metrics
