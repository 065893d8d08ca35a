"""A long child process: output in a file and line by line, a time limit, nothing left of it afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

_POLL_S = 0.1
_GRACE_S = 10.0
_PR_SET_PDEATHSIG = 1


def run_logged(
    command: Sequence[str],
    log: Path,
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    grace_s: float = _GRACE_S,
) -> int:
    """Run `command` in a process group of its own and return its exit status; -n if signal n ended it.

    The output goes straight into `log`, so that it is whole whatever happens here. However this ends (time is
    up, `on_line` raises, Ctrl-C), the command gets SIGTERM and its whole group, after at most `grace_s`
    seconds, SIGKILL. When this process is killed, the command gets SIGTERM.

    Raises:
        TimeoutError: it ran longer than `timeout_s`.
        OSError: it cannot be started.
    """
    libc = ctypes.CDLL(None)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
        )
    try:
        _follow(process.pid, log, timeout_s, on_line)
    finally:
        _end(process, grace_s)
    return process.returncode


def _follow(pid: int, log: Path, timeout_s: float | None, on_line: Callable[[str], None]) -> None:
    """Pass on the lines of `log` until the process has ended."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    with log.open("r", encoding="utf-8", errors="replace", newline="") as source:
        rest = ""
        while True:
            ended = _has_ended(pid)  # asked before reading, so that no last line is missed
            *lines, rest = re.split(r"[\r\n]+", rest + source.read())
            for line in filter(None, [*lines, rest] if ended else lines):
                on_line(line)
            if ended:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError
            time.sleep(_POLL_S)


def _has_ended(pid: int) -> bool:
    """Whether a child is over; it is not reaped, so that its number and its group's stay its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """End what is left of the process group, then reap its leader."""
    try:
        if not _has_ended(process.pid):
            _signal_group(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + grace_s
            while not _has_ended(process.pid) and time.monotonic() < deadline:
                time.sleep(_POLL_S)
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)
