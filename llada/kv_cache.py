"""Keys and values of earlier forward passes, which a model reads and writes when a request brings them.

Shapes: B rows, R the rows of one forward, Q their query positions, L canvas positions, K key/value heads, C head size.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class KeyValueCache:
    """Rotated keys and values of every layer, [B, K, L, C] each.

    rows, positions_RQ: which rows, and which of their positions, the next forward brings; None means all rows, and all
    positions in order.
    """

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.rows: Tensor | None = None
        self.positions_RQ: Tensor | None = None

    def merge(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write the forwarded positions, and return keys and values of the whole canvas of these rows."""
        if self.rows is None and self.positions_RQ is None:
            self.kept[layer] = (key, value)
            return key, value
        # A model may lie on several devices (`device_map`): each layer's cache is where its keys are.
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
        """Forget all rows but these."""
        for layer, (key, value) in self.kept.items():
            self.kept[layer] = (key[rows.to(key.device)], value[rows.to(key.device)])

    def resize(self, length: int) -> None:
        """Make room for a canvas of another length (a shorter one cuts off its end)."""
        for layer, (key, value) in self.kept.items():
            if key.shape[2] != length:
                more = (0, 0, 0, length - key.shape[2])
                self.kept[layer] = (F.pad(key, more), F.pad(value, more))
