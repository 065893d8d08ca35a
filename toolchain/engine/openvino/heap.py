"""Gives memory that was freed back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Let the C library return the pages of its free blocks.

    Left alone, glibc keeps them: once blocks of some size have been freed it takes their like from the heap,
    where every small object that outlives its neighbours pins a hole that the next block does not fit into.
    Other C libraries have no such call, nor the habit.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
