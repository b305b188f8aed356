"""Signals that ask a run to stop: it saves at the end of the step and ends with an exit code that says why."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

import torch
from transformers import TrainerCallback

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: the same command, started again, succeeds
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """Save and stop at the end of a step in which SIGTERM, SIGUSR1 or Ctrl-C came to any process.

    All processes stop after the same step: they compare what they have received at the end of each one, with the
    reduction of one number. An evaluation that is due at that step is left out, as the time is short.

    stopped_by: the number of the signal by which training was stopped, on all processes; 0 for none.
    """

    def __init__(self) -> None:
        self.received = self.stopped_by = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Receive the signals while training runs. Handlers that a script has set itself stay."""
        self.received = self.stopped_by = 0
        former = {}
        if threading.current_thread() is threading.main_thread():  # Python sets handlers in no other
            for number in SIGNALS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    former[number] = signal.signal(number, self.receive)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def receive(self, number: int, frame) -> None:
        """Remember a signal; a second Ctrl-C stops at once."""
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = number
        again = ". Ctrl-C again stops at once" if number == signal.SIGINT else ""
        if os.environ.get("RANK", "0") == "0":
            # Not print: the signal may have come in the midst of another print.
            os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this step{again}\n".encode())

    def on_step_end(self, args, state, control, **kwargs):
        stop = self.received
        if torch.distributed.is_initialized():
            shared = torch.tensor(stop, device=args.device)
            torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
            stop = int(shared)
        if stop:
            self.stopped_by = stop
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped_by:  # the step's end has saved
            control.should_save = control.should_evaluate = control.should_log = False
