"""How a recipe or command stops on an error that its user can fix: the message, without a traceback, printed last."""

import errno
import json
import linecache
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable

OURS = ("llada", "vrpo", "__main__")
AUTO_CLASSES = "transformers.models.auto."
# A full disk or quota, a disk that only reads or is broken, wherever it is noticed: no bug of ours.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
INTERRUPTED = 128 + signal.SIGINT
PATIENCE = 2.0  # seconds; torchrun ends the other processes some tenths of a second after the first has failed


def is_for_the_user(error: BaseException) -> bool:
    """Whether an error says by itself what to change, so that a traceback would only hide its message.

    Those are the errors that this repository raises on purpose about a value (ValueError, FloatingPointError), a file
    that does not exist, a disk that cannot be written (`DISK`), and what transformers and datasets say of a model or
    dataset that they cannot find: an OSError without an error number of the operating system. Any other error is a bug
    and keeps its traceback; so does a ValueError of Python itself, as of `int("a")` or `zip(strict=True)`, for which no
    line of ours is a `raise`. The auto classes of transformers name a checkpoint of an unknown architecture in a
    ValueError too.
    """
    if isinstance(error, OSError):
        return isinstance(error, FileNotFoundError) or error.errno is None or error.errno in DISK
    if not isinstance(error, ValueError | FloatingPointError) or error.__traceback__ is None:
        return False
    frame, line = list(traceback.walk_tb(error.__traceback__))[-1]
    module = frame.f_globals.get("__name__", "")
    text = linecache.getline(frame.f_code.co_filename, line)
    spoken = module.split(".")[0] in OURS or module.startswith(AUTO_CLASSES)
    return spoken and text.lstrip().startswith("raise ")


def report(error: BaseException) -> None:
    """State an error's message where it will stand last: in torchrun's report if there is one, else on stderr.

    torchrun (and `accelerate launch` with several processes) prints, after all else, the message that the failed
    process left in the file TORCHELASTIC_ERROR_FILE. The format is that of
    `torch.distributed.elastic.multiprocessing.errors.ErrorHandler`, without the traceback that `record` would add.
    """
    message = f"{type(error).__name__}: {error}"
    close_bars()
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:
        print(message, file=sys.stderr)
        return
    with open(path, "w") as file:
        json.dump({"message": message, "timestamp": str(int(time.time()))}, file)


def close_bars() -> None:
    """End the lines of progress bars that are on the screen: a message would stand behind one of them."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()


def run(main: Callable[[], None]) -> None:
    """Call the `main` of a recipe or command as a script; an error for the user becomes a message and exit status 1.

    Ctrl-C ends with `INTERRUPTED`, as shells expect, and without a traceback.

    When one process of several fails, the others fail for its sake, in a collective operation, or for the same reason.
    So each but the first waits a moment before it says so: the launcher meanwhile ends it, and one message remains. If
    it is not ended, its error was its own.
    """
    rank, several = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)) > 1
    try:
        main()
    except Exception as error:
        known = is_for_the_user(error)
        if several and not (known and rank == 0):
            time.sleep(PATIENCE)
        if not known:
            raise
        report(error)
        leave(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        leave(INTERRUPTED)


def leave(status: int) -> None:
    """End the process. Not sys.exit: the interpreter's shutdown would warn of a process group that is still open."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
