"""Locks between processes: `flock`, which the kernel releases when its holder dies, however it dies.

A lock file is unlinked by the holder while it still holds the lock. Whoever waited on that file then
finds that the path no longer leads to it, and starts over; so lock files neither leak nor race.
A child made by `fork` without `exec` shares the locks of its parent until it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(path: Path, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`; wait for it if need be, after `on_wait(who holds it)` was told once."""
    fd = _take(path, blocking=False)
    if fd is None:
        on_wait(_holder(path))
        fd = _take(path, blocking=True)
    assert fd is not None
    with contextlib.suppress(OSError):  # who holds it is only told for comfort; a full disk is no obstacle
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    try:
        yield
    finally:
        _drop(path, fd)


@contextlib.contextmanager
def try_exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody does: yields whether it is held now."""
    fd = _take(path, blocking=False)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            _drop(path, fd)


def share(path: Path) -> int | None:
    """A descriptor that holds a shared lock on an existing file; None if there is no such file (any more).

    It only opens the file for reading, so it works on a read-only file system. The lock goes with the
    file when that is renamed, and ends when the descriptor is closed.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        if leads_to(path, fd):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def seize(path: Path) -> int | None:
    """A descriptor with the exclusive lock on an existing file; None if anybody shares it, or it is gone."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if leads_to(path, fd):
            return fd
    except BlockingIOError:
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def _take(path: Path, *, blocking: bool) -> int | None:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            if leads_to(path, fd):
                return fd
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its holder unlinked it while we waited: take the lock at this path anew


def _drop(path: Path, fd: int) -> None:
    try:
        path.unlink(missing_ok=True)
    finally:
        os.close(fd)


def leads_to(path: Path, fd: int) -> bool:
    """Whether `path` still names the file that is open as `fd`."""
    try:
        named = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    opened = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _holder(path: Path) -> str:
    try:
        return path.read_text() or "another process"
    except OSError:
        return "another process"
