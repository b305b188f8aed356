"""A directory that a run writes: who holds it, and why it cannot be written.

Importing it imports neither torch nor transformers.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from llada.errors import OutputError

logger = logging.getLogger(__name__)


# What torch.save says when a write fails; it says why only where a file cannot be opened.
TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "file write failed", "cannot be opened", "iostream error")
PROBE = 2**20  # bytes
LOCK = ".run.lock"
held: set[Path] = set()  # locks of this process


def write_error(error: BaseException, folder: Path) -> str | None:
    """Why writing into a directory failed, as "No space left on device"; None if the error is of another kind.

    The cause is the error number of the system, in the error or in one that it followed from. The writers of
    safetensors and tokenizers, which are in Rust, have it in their text only. torch.save loses it, and a file is
    written to see what happens.
    """
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno is not None:
            return os.strerror(chain.errno)
        chain = chain.__cause__ or chain.__context__
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        return os.strerror(int(found[1]))
    if isinstance(error, RuntimeError) and (found := re.search(r"open file failed with strerror: (.+)", str(error))):
        return found[1].strip()
    if isinstance(error, RuntimeError) and any(sign in str(error) for sign in TORCH_WRITER):
        return probe(folder) or f"torch.save failed: {error}"
    return None


def probe(folder: Path) -> str | None:
    """Why a file of `PROBE` bytes cannot be written into a directory, or above it if it does not exist."""
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # it has no name, so that a kill leaves nothing
            file.write(bytes(PROBE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror
    return None


@contextlib.contextmanager
def writing(folder: str | Path, consequence: str) -> Iterator[None]:
    """State in one line which directory could not be written, why, and what follows from it.

    Raises:
        OutputError: in place of the error of a write that failed.
    """
    try:
        yield
    except OutputError:
        raise
    except Exception as error:
        cause = write_error(error, Path(folder))
        if cause is None:
            raise
        raise OutputError(f"{folder} cannot be written: {cause}. {consequence}") from error


@contextlib.contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold a directory for this process, which may do so again meanwhile; however it ends, the lock ends with it.

    The file stays: deleting it could give two processes a lock each. Processes that this one forks do not have it.

    Raises:
        OutputError: another process holds it; or the directory cannot be written.
    """
    path = Path(folder, LOCK).resolve()
    if path in held:
        yield
        return
    with contextlib.ExitStack() as stack:
        with writing(folder, "Nothing was started"):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+"))
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise OutputError(
                    f"{folder} is in use by another run ({file.read().strip()}): wait for it or end it, or choose "
                    "another output_dir"
                ) from None
            logger.warning("%s: no locks here (%s), so that a second run is not noticed", folder, error.strerror)
        with writing(folder, "Nothing was started"):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        held.add(path)
        try:
            yield
        finally:
            held.discard(path)
