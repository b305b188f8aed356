"""The number of the pass over the training data, which is in the keys of the masks' random streams."""

import math

from transformers import TrainerCallback


class EpochCounter(TrainerCallback):
    """Count passes over the data; the count is the epoch in the keys of the masks' random streams.

    `TrainerState.epoch` is a share of the steps, which for streamed data does not reach 1 at the end of a pass.
    """

    def __init__(self):
        self.epoch = -1
        self.step = -1

    def on_train_begin(self, args, state, control, **kwargs):
        self.epoch = self.step = -1

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.step = state.global_step
        self.epoch = max(self.epoch + 1, math.floor(state.epoch or 0.0))

    def on_epoch_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise RuntimeError(
                "a pass over the training data trained no step: the data is shorter than one batch, or it is a stream "
                "of which drop_invalid and drop_overlong left no row, or that ended before the step to resume from (a "
                "stream can be resumed in its first pass only)"
            )
