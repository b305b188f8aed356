"""How much of a score is not noise, for each design, n and length of response, without a model.

    python benchmarks/reliability.py [--draws 2000]

Take log-ratios of tokens that do not depend on the mask and are independent, with mean 0 and the same variance. A
score is then sum_i w_i d_i, w_i the weight of token i averaged over the n draws, whose mean is 1; over log-ratios,

    V / S = E[ mean over i of (w_i - 1)^2 ]        reliability = 1 / (1 + V / S)

with V the variance over masks and S the mean square of exact scores. For exact counts and independent draws, V / S is
(H_L - 1) / n. Where all tokens of a response have the same log-ratio, V = 0 for exact counts; log-ratios that depend on
the mask add to V. `python -m vrpo.variance` measures the reliability of real models on real pairs.
"""

import argparse

import torch

from llada.diffusion.random_streams import generator_for
from vrpo.estimators.designs import design

LENGTHS = (13, 16, 32, 64, 128, 256)
PAIRED = {"levels": "mirrored", "complementary": True}
DESIGNS = [("vrpo", n, {}) for n in (1, 2, 4, 8, 16)]
DESIGNS += [("vrpo", n, PAIRED) for n in (2, 4, 8)]
DESIGNS += [("loo_complementary", n, {}) for n in (4, 8)]


def weight_noise(name: str, n: int, options: dict, length: int, draws: int, seed: int = 0) -> tuple[float, float]:
    """V / S and its standard error."""
    response_BL = torch.ones(draws, length, dtype=torch.bool)
    generators = [generator_for(seed, length, index) for index in range(draws)]
    weight_BL = design(name, n_t=n, **options).draw(response_BL, generators).weight_SBL.mean(0)
    found_B = (weight_BL - 1).square().mean(-1)
    return float(found_B.mean()), float(found_B.std() / draws**0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=2000)
    args = parser.parse_args()
    print("reliability in %; V / S +- standard error")
    print("design | n | " + " | ".join(f"{length} tokens" for length in LENGTHS))
    for name, n, options in DESIGNS:
        cells = []
        for length in LENGTHS:
            noise, error = weight_noise(name, n, options, length, args.draws)
            cells.append(f"{100 / (1 + noise):.0f}; {noise:.2f} +- {error:.2f}")
        print(" | ".join([name + (", complementary" if options else ""), str(n), *cells]), flush=True)


if __name__ == "__main__":
    main()
