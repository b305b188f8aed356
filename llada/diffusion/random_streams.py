"""Which random numbers a draw gets. Every key space has its name here, so that no two of them meet.

A stream depends on a seed and a key of integers. Neighbouring keys give unrelated streams (the key is hashed), so no
key shifts another's draws: masks survive resuming, another number of processes and another split into micro-batches.

    (epoch, example id)                 masks of a row in pretraining and SFT
    (epoch, example id, side, model)    masks of a response in preference training
    (first index,)                      the batch of a sampling run that begins with this answer

The epoch counts passes over the data from 0. Draws that belong to no pass have epochs of their own, below.
"""

import hashlib

import torch
from torch import Generator

EVALUATION = -1  # every evaluation, so that its curve moves with the model only
MASKED_SUMS = 1_000_003  # the masked sums that variances are split by source with
CHOSEN, REJECTED = 0, 1  # sides
POLICY, REFERENCE = 0, 1  # models; one that shares the policy's masks has no stream


def second_draw(epoch: int) -> int:
    """The epoch of a second, independent draw of every mask of a pass: -2, -3, ..."""
    return -2 - epoch


def generator_for(seed: int, *key: int) -> Generator:
    """A CPU generator that depends on the seed and the key only, such as (epoch, example id)."""
    text = ",".join(str(int(part)) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def response_generators(seed: int, epoch: int, example_ids: list[int], model: int) -> list[Generator]:
    """One generator for each response of P pairs, [2P]: the chosen, then the rejected."""
    return [generator_for(seed, epoch, example, side, model) for side in (CHOSEN, REJECTED) for example in example_ids]
