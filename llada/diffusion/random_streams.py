"""Which random numbers a draw gets: every key space has its name here.

A stream is named by a seed and a key, such as (epoch, example id, side). Neighbouring keys give unrelated streams.
"""

import hashlib

import torch
from torch import Generator


def keyed_generator(seed: int, *key: int) -> Generator:
    """A CPU generator that depends on the seed and the key only, e.g. (epoch, example id, side).

    Neighbouring keys give unrelated streams (the key is hashed), so no key shifts another's draws: masks survive
    resuming, another number of processes and another split into micro-batches.
    """
    text = ",".join(str(int(part)) for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
