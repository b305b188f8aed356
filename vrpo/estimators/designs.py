"""Sampling designs of the preference score: the paper's, one with less variance, and their common protocol.

    B_hat = (1/n_t) sum_j (1/n_y) sum_k (L/l_j) sum_{i in M_jk} log p(y_i | y without M_jk, x)    (LLaDA 1.5, eq. 6, 14)
    s = beta [B_theta(y_w) - B_ref(y_w)] - beta [B_theta(y_l) - B_ref(y_l)]                       (ib., eq. 5)

LLaDA 1.5 is arXiv 2505.19223. A budget of n = n_t n_y forward passes for each response and model is split over n_t
timesteps and n_y masks at each (n_y = 1 has the least variance, ib., Prop. 1). Policy and reference may share masks
("antithetic sampling" in the paper; ib., Prop. 2); the masks of chosen and rejected are always drawn independently.

A design is any class with the members of `Design`; the trainer, the analysis and the benchmarks find it by its name in
`DESIGNS`. `ComposedDesign` combines options that can be chosen independently, and with exact counts every combination
is unbiased: how timesteps are spread, whether masks complement each other, importance sampling of small masked counts,
and a leave-one-out token baseline (`llada.diffusion.baseline`). `loo_complementary`, complementary masks at mirrored
timesteps with that baseline, had the least variance of the combinations that were measured.

Shapes: S draws (S = n_t n_y), B responses, P pairs, L tokens. All values are in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from torch import Generator, Tensor

from llada.checks import OneOf, PositiveInt, Range, check, check_fields
from llada.diffusion.baseline import leave_one_out
from llada.diffusion.masking import LevelKind, MaskDraws, MaskKind, draw_masks
from llada.diffusion.random_streams import POLICY, REFERENCE, response_generators
from vrpo.estimators.protocol import Design
from vrpo.estimators.published import PUBLISHED


@dataclass(frozen=True)
class ComposedDesign:
    """A design that combines independent options.

    n_t: timesteps; n_y: masks at each. shared_masks: policy and reference see the same masks.
    masks: "exact_count" (weight L/l) or "bernoulli" (weight 1/t, floored).
    levels: "iid", "stratified" or "mirrored" timesteps.
    complementary: draws 1 and 2, 3 and 4, ... have masks that complement each other.
    count_tilt: exponent of the importance tilt towards small masked counts.
    baseline_prior: pseudo-count that pulls a token's baseline to the mean over tokens; 0 for no baseline.
    baseline_slope: slope of the baseline in the masked fraction x: it is proportional to 1 + baseline_slope x.

    A baseline needs draws outside a draw's own group, so with n = 1, or 2 complementary masks, there is none.

    Raises:
        ValueError: a part that is unknown or out of range, or parts that cannot be combined.
    """

    n_t: PositiveInt = 8
    n_y: PositiveInt = 1
    shared_masks: bool = True
    masks: MaskKind = "exact_count"
    levels: LevelKind = "iid"
    complementary: bool = False
    count_tilt: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    baseline_prior: Annotated[float, Range(at_least=0, at_most=1e6)] = 0.0
    baseline_slope: Annotated[float, Range(at_least=0, at_most=100)] = 0.0

    def __post_init__(self):
        check_fields(self)
        if self.baseline_slope and not self.baseline_prior:
            raise ValueError(f"baseline_slope={self.baseline_slope} needs a baseline: baseline_prior is 0")
        if self.masks != "exact_count" and (self.count_tilt or self.baseline_prior):
            raise ValueError(
                f"count_tilt={self.count_tilt} and baseline_prior={self.baseline_prior} need masks='exact_count', not "
                f"{self.masks!r}: set both to 0"
            )

    @property
    def n(self) -> int:
        return self.n_t * self.n_y

    @property
    def independent(self) -> bool:
        return self.n == 1 or (self.n_y, self.levels, self.complementary, self.baseline_prior) == (1, "iid", False, 0)

    @property
    def biased(self) -> bool:
        """True for Bernoulli masks: the floor of t biases them (`exact_elbo(eps=...)` computes by how much)."""
        return self.masks == "bernoulli"

    def draw(self, response_mask_BL: Tensor, generators: Sequence[Generator]) -> MaskDraws:
        drawn = draw_masks(
            response_mask_BL,
            generators,
            self.n_t,
            self.masks,
            self.levels,
            self.n_y,
            self.complementary,
            self.count_tilt,
        )
        if not self.baseline_prior:
            return drawn
        group = 2 if self.complementary else 1
        return leave_one_out(drawn, response_mask_BL, group, self.baseline_prior, self.baseline_slope)


# The paper's method (ib., section 4.1) with weight L/l (eq. 14) and with 1/t (eq. 12), its baseline (Table 1: one draw,
# no shared masks), this project's loo_complementary, and the designs of other papers.
DESIGNS: dict[str, Design] = {
    "vrpo": ComposedDesign(),
    "vrpo_bernoulli": ComposedDesign(masks="bernoulli"),
    "naive_dpo": ComposedDesign(n_t=1, shared_masks=False),
    "loo_complementary": ComposedDesign(
        levels="mirrored", complementary=True, count_tilt=0.1, baseline_prior=0.1, baseline_slope=3.0
    ),
    **PUBLISHED,
}


def design(name: str, **options: Any) -> Any:
    """A named design with some of its options changed; None leaves an option as it is.

    Raises:
        ValueError: an unknown name, an option that the design does not have, or options that cannot be combined.
    """
    check("estimator", name, Annotated[str, OneOf(sorted(DESIGNS))])
    options = {option: value for option, value in options.items() if value is not None}
    known = [field.name for field in fields(DESIGNS[name])]  # type: ignore[arg-type]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"estimator={name!r} has no option {unknown[0]!r}: it has {known}")
    if options.get("baseline_prior") == 0:
        options = {"baseline_slope": 0.0} | options  # without a baseline its slope must be 0
    return replace(DESIGNS[name], **options)  # type: ignore[type-var]


def draw_for_pairs(
    design: Design, response_mask_BL: Tensor, example_ids: list[int], seed: int, epoch: int
) -> tuple[MaskDraws, MaskDraws]:
    """Masks for the policy and for the reference: the same object when they are shared.

    Args:
        response_mask_BL: bool [2P, L], the response tokens of the P chosen and then of the P rejected.
        example_ids: the P ids of the pairs; with seed, epoch, side and model they seed the draws of a response.
    """

    def draw(model: int) -> MaskDraws:
        return design.draw(response_mask_BL, response_generators(seed, epoch, example_ids, model))

    policy = draw(POLICY)
    return policy, policy if design.shared_masks else draw(REFERENCE)
