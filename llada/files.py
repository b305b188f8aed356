"""Files that are whole or not there: atomic replacement, and manifests that list what a directory must hold.

Importing it imports neither torch nor transformers.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
NOT_FINISHED = "it was not finished"
UNFINISHED = ".tmp"  # ends the names of files and directories that are being written or deleted


def flush_to_disk(path: Path) -> None:
    """Return when the contents of a file, or the names in a directory, would survive a loss of power."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def beside(path: Path) -> Path:
    """A hidden name in the same directory, for what will take the name `path`; it is this process's own."""
    return path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")


def replace_file(path: str | Path, content: str | bytes) -> None:
    """Write a file that is at every moment the former one or the new one, also after a loss of power.

    Raises:
        OSError: it cannot be written; the former one is then as it was.
    """
    path = Path(path)
    new = beside(path)
    try:
        with open(new, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    finally:
        new.unlink(missing_ok=True)
    flush_to_disk(path.parent)


def delete_left(path: Path) -> None:
    """Delete what killed processes have left of `replace_file(path)`: for the one that now holds the file."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{UNFINISHED}"):
        if left.name.removeprefix(f".{path.name}.").removesuffix(UNFINISHED).isdecimal():
            left.unlink(missing_ok=True)


def digest(path: str | Path) -> str:
    """The XXH3 hash of a file, 128 bits in hexadecimal: it finds damage, and is no protection from an attacker."""
    with open(path, "rb") as file:
        hasher: Any = xxhash.xxh3_128  # a hash as hashlib has them, but for the stub of its `copy`
        return hashlib.file_digest(file, hasher).hexdigest()


def files_below(folder: Path) -> list[str]:
    """The names of all files below a directory, relative to it, but not its manifest nor what is unfinished."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    kept = (name for name in found if not any(part.endswith(UNFINISHED) for part in name.parts))
    return sorted(name.as_posix() for name in kept if name.as_posix() != MANIFEST)


def mark_unfinished(folder: str | Path) -> None:
    """State in a directory's manifest that its files are being written; `write_manifest` ends that."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    replace_file(Path(folder, MANIFEST), json.dumps({"unfinished": True}) + "\n")


def write_manifest(folder: str | Path, names: Iterable[str] | None = None, flush: bool = True) -> None:
    """List files of a directory with their sizes and hashes in its `manifest.json`: the last file to be written.

    Args:
        names: of the files, relative to `folder`; by default all that lie below it.
        flush: whether the files must be on the disk before the manifest is, so that it holds after a loss of power.
    """
    folder = Path(folder)
    files = {}
    for name in files_below(folder) if names is None else sorted(names):
        if flush:
            flush_to_disk(folder / name)
        files[name] = {"size": (folder / name).stat().st_size, "xxh3_128": digest(folder / name)}
    replace_file(folder / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def has_manifest(folder: str | Path) -> bool:
    """Whether a directory has a manifest, be it unfinished or damaged."""
    return Path(folder, MANIFEST).exists()


def is_unfinished(folder: str | Path) -> bool:
    """Whether the manifest of a directory says that its files are being written, or were when their writer ended."""
    return has_manifest(folder) and flaw_of_manifest(folder) == NOT_FINISHED


def read_manifest(folder: str | Path) -> dict[str, tuple[int, str]]:
    """Size [bytes] and hash of each file that a directory's manifest lists, by its relative name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or unfinished (`NOT_FINISHED`).
    """
    try:
        manifest = json.loads(Path(folder, MANIFEST).read_text(encoding="utf-8"))
        if "unfinished" in manifest:
            raise ValueError(NOT_FINISHED)
        listed = {name: (int(file["size"]), str(file["xxh3_128"])) for name, file in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        raise ValueError(f"{MANIFEST} is damaged") from None
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in listed):
        raise ValueError(f"{MANIFEST} is damaged")
    return listed


def flaw_of_manifest(folder: str | Path) -> str | None:
    """Why a directory's manifest says nothing of its files; None if it lists them."""
    try:
        read_manifest(folder)
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return None


def flaw_of(folder: str | Path, ending: str = "") -> str | None:
    """Why a directory is not whole by its manifest, as "model.safetensors is missing"; None if it is whole.

    A directory without a manifest cannot be judged and is not whole (see `has_manifest`, for directories that were
    written before there were manifests). Files that the manifest does not list are not looked at.

    Args:
        ending: look only at files whose names end so, such as ".safetensors".
    """
    flaw = flaw_of_manifest(folder)
    if flaw is not None:
        return flaw
    listed = {name: file for name, file in read_manifest(folder).items() if name.endswith(ending)}
    # All sizes first: they are read at once, and find most damage.
    sizes = (flaw_of_size(Path(folder, name), size) for name, (size, _) in listed.items())
    hashes = (flaw_of_content(Path(folder, name), expected) for name, (_, expected) in listed.items())
    return next(filter(None, itertools.chain(sizes, hashes)), None)


def flaw_of_size(path: Path, size: int) -> str | None:
    """Why a file is not of the size [bytes] that a manifest lists; None if it is."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return None if found == size else f"{path.name} has {found} bytes instead of {size}"


def flaw_of_content(path: Path, expected: str) -> str | None:
    """Why a file has not the hash that a manifest lists; None if it has."""
    try:
        return None if digest(path) == expected else f"{path.name} is damaged (its hash is another)"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def replace_directory(source: Path, target: Path) -> None:
    """Give the directory `source` the name of `target`, whose former contents are deleted afterwards."""
    if not target.exists():
        source.rename(target)
        return
    old = source.with_name(f".{target.name}.{os.getpid()}.old{UNFINISHED}")
    target.rename(old)
    source.rename(target)
    shutil.rmtree(old)


def delete_directory(path: Path) -> None:
    """Delete a directory under another name, so that a part of it never stands under its own."""
    gone = beside(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(gone)
        shutil.rmtree(gone)
