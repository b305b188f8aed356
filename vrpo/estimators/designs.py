"""Sampling designs of the preference score, and the plans they draw: the paper's, and one with less variance.

    B_hat = (1/n_t) sum_j (1/n_y) sum_k (L/l_j) sum_{i in M_jk} log p(y_i | y without M_jk, x)    (LLaDA 1.5, eq. 6, 14)
    s = beta [B_theta(y_w) - B_ref(y_w)] - beta [B_theta(y_l) - B_ref(y_l)]                       (ib., eq. 5)

LLaDA 1.5 is arXiv 2505.19223. A budget of n = n_t n_y forward passes for each response and model is split over n_t
timesteps and n_y masks at each (n_y = 1 has the least variance, ib., Prop. 1). A design is *coupled* when policy and
reference share masks (the paper says antithetic; ib., Prop. 2); chosen and rejected are always drawn apart.

The parts of a design are independent of each other, and every combination is unbiased: how levels are spread, whether
masks complement each other, an importance tilt towards small counts, and a leave-one-out token baseline
(`baseline`). `cpl`, Complementary Pairs with a Leave-one-out baseline, is the combination that was measured best.

Shapes: S draws (S = n_t n_y), B responses, P pairs, L tokens. All values are in nats.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from llada.diffusion.masking import LEVELS, MASKS, MaskPlan, draw_plan
from llada.diffusion.random_streams import keyed_generator
from vrpo.estimators.baseline import leave_one_out

CHOSEN, REJECTED = 0, 1  # the side in a mask key


POLICY, REFERENCE = 0, 1  # the model in a mask key


@dataclass(frozen=True)
class Estimator:
    """How the draws of one response are made; it never touches beta, learning rate or batch.

    n_t: timesteps; n_y: masks at each; coupled: policy and reference share draws; masks: "exact_count" (weight L/l) or
    "bernoulli" (weight 1/t, floored); levels: "iid", "stratified" or "antithetic" timesteps; complementary: draws 1 and
    2, 3 and 4, ... have masks that complement each other; tilt: exponent of the importance tilt to small counts;
    kappa: pseudo-count of the token baseline, None for no baseline; growth: how much larger log-ratios are where all is
    hidden (`vrpo.estimators.baseline.leave_one_out`).
    """

    n_t: int
    n_y: int = 1
    coupled: bool = True
    masks: str = "exact_count"
    levels: str = "iid"
    complementary: bool = False
    tilt: float = 0.0
    kappa: float | None = None
    growth: float = 0.0

    def __post_init__(self):
        numbers = {"tilt": (self.tilt, 0, 1), "growth": (self.growth, 0, 100)}
        if self.kappa is not None:
            numbers["kappa"] = (self.kappa, 0, 1e6)
        for name, (value, low, high) in numbers.items():
            if not low <= value <= high:  # nan neither
                raise ValueError(f"{name}={value} must be from {low} to {high}")
        if self.n_t < 1 or self.n_y < 1:
            raise ValueError(f"n_t={self.n_t} and n_y={self.n_y} must be at least 1")
        if self.masks not in MASKS:
            raise ValueError(f"masks={self.masks!r} is unknown: it must be one of {MASKS}")
        if self.levels not in LEVELS:
            raise ValueError(f"levels={self.levels!r} is unknown: it must be one of {LEVELS}")
        if self.kappa is not None and self.kappa <= 0:
            raise ValueError(f"kappa={self.kappa} must be positive, or None for no baseline")
        if self.growth and self.kappa is None:
            raise ValueError(f"growth={self.growth} is of a baseline: it needs kappa")
        if self.masks != "exact_count" and (self.tilt or self.kappa is not None):
            raise ValueError(
                f"tilt={self.tilt} and kappa={self.kappa} need masks='exact_count', not {self.masks!r}: set both to 0"
            )

    @property
    def n(self) -> int:
        """Forward passes for each response and model."""
        return self.n_t * self.n_y

    @property
    def independent(self) -> bool:
        """Whether the draws of a response are independent, so that their sample variance means something."""
        return self.n == 1 or (self.n_y, self.levels, self.complementary, self.kappa) == (1, "iid", False, None)


# The paper's method (ib., section 4.1) with weight L/l (eq. 14) and with 1/t (eq. 12), its baseline (Table 1: one draw,
# nothing shared), and ours.
DESIGNS = {
    "vrpo": Estimator(n_t=8),
    "vrpo_bernoulli": Estimator(n_t=8, masks="bernoulli"),
    "naive_dpo": Estimator(n_t=1, coupled=False),
    "cpl": Estimator(n_t=8, levels="antithetic", complementary=True, tilt=0.1, kappa=0.1, growth=3.0),
}


def design(name: str, **changes) -> Estimator:
    """A named design with some of its parts changed; None leaves a part as it is.

    A baseline needs draws outside a draw's own group, so with n = 1 or 2 `cpl` has none: n = 2 is a complementary pair
    alone. kappa = 0 means no baseline.

    Raises:
        ValueError: an unknown name, or parts that do not fit.
    """
    if name not in DESIGNS:
        raise ValueError(f"estimator={name!r} is unknown: it must be one of {sorted(DESIGNS)}")
    changes = {part: value for part, value in changes.items() if value is not None}
    if changes.get("kappa") == 0:
        if changes.get("growth"):
            raise ValueError(f"growth={changes['growth']} is of a baseline, and kappa=0 is none")
        changes |= {"kappa": None, "growth": 0.0}
    return replace(DESIGNS[name], **changes)


def draw_pair_plans(
    scored_BL: Tensor, example_ids: list[int], estimator: Estimator, seed: int, epoch: int
) -> tuple[MaskPlan, MaskPlan]:
    """Plans of the policy and of the reference: the same object when coupled.

    Args:
        scored_BL: bool [2P, L], the P chosen responses and then the P rejected.
        example_ids: the P ids of the pairs; with seed, epoch and side they are the key of each response's draws.
    """

    def plan(model: int) -> MaskPlan:
        generators = [
            keyed_generator(seed, epoch, example, side, model) for side in (CHOSEN, REJECTED) for example in example_ids
        ]
        e = estimator
        drawn = draw_plan(scored_BL, generators, e.n_t, e.masks, e.levels, e.n_y, e.complementary, e.tilt)
        return (
            drawn
            if e.kappa is None
            else leave_one_out(drawn, scored_BL, 2 if e.complementary else 1, e.kappa, e.growth)
        )

    policy = plan(POLICY)
    return policy, policy if estimator.coupled else plan(REFERENCE)
