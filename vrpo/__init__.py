"""Preference optimization of masked diffusion language models (VRPO, arXiv 2505.19223), built on `llada`.

The names in `__all__` are imported on first use.
"""

import llada  # noqa: F401  (registers the families with the Auto classes)
from llada.lazy import lazy_exports

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "vrpo.collator": ["PairCollator"],
        "vrpo.data": ["prepare_pairs"],
        "vrpo.estimators.designs": ["DESIGNS", "ComposedDesign", "Design", "design", "draw_for_pairs"],
        "vrpo.losses.pairwise": ["LOSSES", "LossInputs", "PreferenceLoss"],
        "vrpo.rollouts": ["DIVERSE", "best_and_worst", "pair_up", "preference"],
        "vrpo.scores": ["PairScores"],
        "vrpo.training.config": ["VRPOConfig"],
        "vrpo.training.trainer": ["VRPOTrainer"],
    },
)
