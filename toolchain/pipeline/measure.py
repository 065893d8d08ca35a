"""Wall time and peak memory of a piece of work in this process."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class Meter:
    """Starts when made; `read()` tells what was used since.

    Peak memory is the peak resident set (VmHWM) of this process, mapped files included, or that of its
    largest child if one that ended meanwhile was larger. It includes what was resident before, and children
    smaller than the largest one ever are not seen. Where the kernel does not let the peak be reset, it is
    that of the whole process so far.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
        self._child = _largest_child()
        self._start = time.monotonic()

    def read(self) -> tuple[float, int]:
        """Seconds, and bytes at the peak."""
        seconds = time.monotonic() - self._start
        child = _largest_child()
        return seconds, max(_own_peak(), child if child > self._child else 0)


def _largest_child() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _own_peak() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
