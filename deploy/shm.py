"""Shared memory, through which Triton and its Python models exchange tensors.

A container gets 64 MiB of it unless told otherwise, and a server that runs out of it dies of a bus error.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from toolchain.errors import LaunchError

DIRECTORY = Path("/dev/shm")
PER_MODEL = 2 << 20
"""Bytes: each Python model takes 1 MiB at once, and grows by as much when it answers."""
COMFORTABLE = 64 << 20
FIX = "give the container more: docker run --shm-size=1g, or mount a larger tmpfs on /dev/shm"


def free_shared_memory(directory: Path = DIRECTORY) -> int:
    """Free bytes; 0 when there is no such file system."""
    try:
        stat = os.statvfs(directory)
    except OSError:
        return 0
    return stat.f_bavail * stat.f_frsize


def check_shared_memory(
    models: int, warn: Callable[[str], None] | None = None, directory: Path = DIRECTORY
) -> None:
    """Make sure that `models` Python models can start; `warn` in a line when it will be tight.

    Raises:
        LaunchError: there is too little.
    """
    free, needed = free_shared_memory(directory), models * PER_MODEL
    if free < needed:
        raise LaunchError(
            "too little shared memory to start Triton",
            where=str(directory),
            why=f"{free >> 20} MiB are free, and {models} models take {needed >> 20} MiB",
            fix=FIX,
        )
    if free < COMFORTABLE and warn:
        warn(f"only {free >> 20} MiB of shared memory are free: large requests may fail; {FIX}")
