"""The process between llmbuild and tritonserver, so that the server never outlives the one who started it.

Run as `python guard.py CONTROL_FD EXIT_TIMEOUT SHM_PREFIX tritonserver ...`, with the standard library only.
It starts the server in a process group of its own, tells its pid through the control socket, and then waits
for the first of: the server ends; a signal to stop; "stop" on the socket; the socket's end, which is what a
killed starter leaves. To stop is SIGTERM, upon which Triton drains, and after EXIT_TIMEOUT seconds, or at
"kill" on the socket, SIGKILL to that group. Whatever ended it, the guard then kills what is left of the group
(Triton's Python stubs survive a killed server) and removes the shared memory with the server's own prefix.

Exit status: that of the server, 128 + n when signal n ended it, 127 when it could not be executed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def main(control_fd: int, exit_timeout_s: float, shm_prefix: str, command: list[str]) -> int:
    """Run `command` as the module's docstring says; returns the exit status."""
    control = socket.socket(fileno=control_fd)
    starter = os.getppid()
    wake, wake_write = socket.socketpair()
    wake.setblocking(False)
    wake_write.setblocking(False)
    signal.set_wakeup_fd(wake_write.fileno(), warn_on_full_buffer=False)
    for number in (*STOP_SIGNALS, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)

    libc = ctypes.CDLL(None)

    def in_child() -> None:
        os.setpgid(0, 0)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    try:
        # SIGPIPE stays ignored, as Python has it: a log that nobody reads any more must not end the draining.
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, preexec_fn=in_child, restore_signals=False
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        return 127
    with contextlib.suppress(OSError):
        control.sendall(b"%d\n" % server.pid)

    sources = [wake, control]
    deadline: float | None = None
    while not _has_ended(server.pid):
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            break
        patience = 1.0 if deadline is None else min(1.0, deadline - now)
        ready, _, _ = select.select(sources, [], [], patience)
        signals = wake.recv(4096) if wake in ready else b""
        order = control.recv(4096) if control in ready else None
        if order == b"":
            sources = [wake]
        stop = order is not None or os.getppid() != starter or any(n in signals for n in STOP_SIGNALS)
        if order and b"kill" in order:
            break
        if stop and deadline is None:
            deadline = time.monotonic() + exit_timeout_s
            server.send_signal(signal.SIGTERM)

    # The server is not reaped before this, so the group's number cannot have passed to anybody else.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    status = server.wait()
    for region in Path("/dev/shm").glob(shm_prefix + "*"):
        region.unlink(missing_ok=True)
    return status if status >= 0 else 128 - status


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
