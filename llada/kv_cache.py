"""The key-value cache of the sampler: keys and values of earlier forward passes, which the model reads and updates.

Shapes: B rows, R rows of one forward pass, Q query positions, L canvas positions, K key/value heads, C head size.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """Rotated keys and values of every layer, [B, K, L, C] each.

    rows, positions_RQ: the rows, and the positions in each, that the next forward pass computes. None means all rows,
    and all positions in order.
    """

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.rows: Tensor | None = None
        self.positions_RQ: Tensor | None = None

    def merge(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the keys and values of the forwarded positions; return those of these rows at all positions.

        Raises:
            ValueError: nothing is stored yet, and not all rows and positions are forwarded.
        """
        if self.rows is None and self.positions_RQ is None:
            self.kept[layer] = (key, value)
            return key, value
        if layer not in self.kept:
            raise ValueError("the first forward pass with a key-value cache must be of all rows and all positions")
        # A model may be spread over several devices (`device_map`): each layer's cache is on its layer's device.
        rows, positions_RQ = (x if x is None else x.to(key.device) for x in (self.rows, self.positions_RQ))
        merged = []
        for kept_BKLC, new_RKQC in zip(self.kept[layer], (key, value), strict=True):
            if rows is None:
                assert positions_RQ is not None
                kept_BKLC.scatter_(2, positions_RQ[:, None, :, None].expand_as(new_RKQC), new_RKQC)
            elif positions_RQ is None:
                kept_BKLC[rows] = new_RKQC
            else:
                kept_BKLC[rows[:, None], :, positions_RQ] = new_RKQC.transpose(1, 2)
            merged.append(kept_BKLC if rows is None else kept_BKLC[rows])
        return merged[0], merged[1]

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows of the cache."""
        for layer, (key, value) in self.kept.items():
            self.kept[layer] = (key[rows.to(key.device)], value[rows.to(key.device)])

    def resize(self, length: int) -> None:
        """Resize the cache to `length` positions: new ones are zero, and a shorter cache loses its end."""
        for layer, (key, value) in self.kept.items():
            if key.shape[2] != length:
                more = (0, 0, 0, length - key.shape[2])
                self.kept[layer] = (F.pad(key, more), F.pad(value, more))
