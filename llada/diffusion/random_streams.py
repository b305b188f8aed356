"""Random number streams of everything that is drawn. All kinds of keys are listed here, so that no two collide.

A generator is seeded with a hash of a seed and a key of integers, so that neighbouring keys give unrelated streams.
Masks are thus the same after a resume, on any number of processes and for any split into micro-batches. The keys are

    (epoch, example id)                 masks of a row in pretraining and SFT
    (epoch, example id, side, model)    masks of a response in preference training
    (TIMESTEPS, example id, side)       masks of the recorded loss by timestep; documents and SFT rows are side 0
    (first index,)                      the batch of a sampling run whose first answer has this index

The example id is a hash of a row's tokens, so that equal rows share their masks within an epoch (docs/decisions.md).
The epoch counts passes over the data from 0. Draws that belong to no pass use the reserved epochs below.
"""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Generator

from llada.checks import check

EVALUATION = -1  # epoch of every evaluation: all use the same masks, so only the model changes the curve
MASKED_SUMS = 1_000_003  # epoch of the masked sums from which `vrpo.analysis` splits variance by source
ROUND = 1_000_004  # epoch of the seed of a round of iterative training, whose number stands for the example id
TIMESTEPS = 1_000_005  # epoch of the masks on which a run records its loss by masking probability
CHOSEN, REJECTED = 0, 1  # sides
POLICY, REFERENCE = 0, 1  # models; a reference that shares the policy's masks has no stream of its own


def second_draw(epoch: int) -> int:
    """The epoch of a second, independent draw of every mask of a pass: -2, -3, ..."""
    return -2 - epoch


def noise_redraw(epoch: int, redraw: int) -> int:
    """The epoch of redraw 0 or 1 of a pass's masks, by which a run measures its gradient's noise: -1,000,003, ...

    Up to a million passes, it is that of no second draw.
    """
    return -1_000_003 - 2 * epoch - redraw


def generator_for(seed: int, *key: int) -> Generator:
    """A CPU generator that depends only on the seed and a key, such as (epoch, example id).

    Raises:
        ValueError: a part is no integer. Rounded down, different keys would share their masks.
    """
    for name, part in (("seed", seed), *(("key", part) for part in key)):
        check(name, part, int)
    text = ",".join(str(int(part)) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def response_generators(seed: int, epoch: int, example_ids: list[int], model: int) -> list[Generator]:
    """Generators for the responses of P pairs, a list of 2P: first the chosen ones, then the rejected ones."""
    return [generator_for(seed, epoch, example, side, model) for side in (CHOSEN, REJECTED) for example in example_ids]


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Keep the random states of Python, numpy and torch, for what a run does beside its training."""
    python, numbers = random.getstate(), np.random.get_state()
    # By default torch keeps the states of all devices that are visible, and warns where there are several.
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        yield
    random.setstate(python)
    np.random.set_state(numbers)
