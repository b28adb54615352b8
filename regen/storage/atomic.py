"""Files and folders that other processes see whole or not at all, and locks on folders."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file beside `path` and moves it there, so that `path` is never half-written.

    Args:
        path: The file to make or replace.
        write: Fills the empty file whose path it gets.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    beside = Path(name)
    try:
        write(beside)
        beside.chmod(0o644)  # mkstemp makes files that only their owner may read
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextmanager
def appearing_whole(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that replaces `folder` when the block ends, or is removed if the block fails."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=_partial_prefix(folder), dir=folder.parent))
    replaced = partial.with_name(f"{partial.name}-replaced")
    try:
        partial.chmod(0o755)  # mkdtemp makes folders that only their owner may read
        yield partial
        if folder.exists() or folder.is_symlink():
            folder.rename(replaced)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _remove(replaced)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left of `appearing_whole(folder)`. The caller holds the folder's lock."""
    for leftover in folder.parent.glob(f"{_partial_prefix(folder)}*"):
        logger.info("removing %s, left by a process that was stopped", leftover)
        _remove(leftover)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Holds a folder's lock, which is a file in `.locks` beside the folder; waits if another process holds it."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is building %s, waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _partial_prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
