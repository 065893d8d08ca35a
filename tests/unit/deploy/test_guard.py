"""The guard with ordinary processes in the server's place."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import deploy.guard

Guarded = tuple[subprocess.Popen[bytes], socket.socket, int]


@pytest.fixture
def guarded() -> Iterator[Callable[..., Guarded]]:
    """Start a guard on a shell script; returns the guard, our end of its socket, and the script's pid."""
    started: list[Guarded] = []

    def start(script: str, *, exit_timeout_s: float = 5.0, shm_prefix: str = "llmbuild_none_") -> Guarded:
        ours, theirs = socket.socketpair()
        guard = [sys.executable, "-I", "-S", deploy.guard.__file__, str(theirs.fileno())]
        command = [*guard, str(exit_timeout_s), shm_prefix, "/bin/sh", "-c", script]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        started.append((process, ours, int(ours.recv(32))))
        return started[-1]

    yield start
    for process, ours, _ in started:
        ours.close()
        process.wait(30)
        process.stdout.close()


def gone(pid: int) -> bool:
    """Whether `pid` ends within ten seconds."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 128 + 9), ("kill -7 $$", 128 + 7)]
)
def test_passes_the_exit_status_on(guarded: Callable[..., Guarded], script: str, status: int) -> None:
    guard, _, _ = guarded(script)
    assert guard.wait(20) == status


def test_says_why_a_binary_does_not_start() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, deploy.guard.__file__, str(theirs.fileno()), "1", "p_", "/nowhere/triton"]
        guard = subprocess.run(command, capture_output=True, pass_fds=[theirs.fileno()], check=False)
    assert guard.returncode == 127
    assert guard.stdout == b"/nowhere/triton: No such file or directory\n"


@pytest.mark.parametrize("how", ["word", "closed socket", "signal"])
def test_stops_gently(guarded: Callable[..., Guarded], how: str) -> None:
    guard, ours, _ = guarded("trap 'echo drained; exit 5' TERM; echo up; while :; do sleep 0.05; done")
    assert guard.stdout is not None
    assert guard.stdout.readline() == b"up\n"
    if how == "word":
        ours.send(b"stop\n")
    elif how == "closed socket":
        ours.close()
    else:
        guard.send_signal(signal.SIGINT)
    assert guard.stdout.readline() == b"drained\n"
    assert guard.wait(20) == 5


def test_kills_after_the_exit_timeout(guarded: Callable[..., Guarded]) -> None:
    guard, ours, _ = guarded("trap '' TERM; echo up; while :; do sleep 0.05; done", exit_timeout_s=0.2)
    assert guard.stdout is not None
    guard.stdout.readline()
    ours.send(b"stop\n")
    assert guard.wait(20) == 128 + signal.SIGKILL


def test_kill_does_not_wait_even_while_draining(guarded: Callable[..., Guarded]) -> None:
    guard, ours, _ = guarded("trap '' TERM; echo up; while :; do sleep 0.05; done", exit_timeout_s=10_000)
    assert guard.stdout is not None
    guard.stdout.readline()
    ours.send(b"stop\n")
    ours.send(b"kill\n")
    assert guard.wait(20) == 128 + signal.SIGKILL


def test_ends_what_the_server_leaves_behind_and_nothing_else(guarded: Callable[..., Guarded]) -> None:
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        guard, _, _ = guarded("sleep 1000 & echo $!; kill -9 $$")
        assert guard.stdout is not None
        orphan = int(guard.stdout.readline())
        assert guard.wait(20) == 128 + signal.SIGKILL
        assert gone(orphan)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_killed_guard_takes_the_server_with_it(guarded: Callable[..., Guarded]) -> None:
    guard, _, pid = guarded("exec sleep 1000")
    guard.kill()
    assert gone(pid)


def test_removes_the_shared_memory_of_its_own_prefix_only(guarded: Callable[..., Guarded]) -> None:
    prefix = f"llmbuild_test_{uuid.uuid4().hex}_"
    mine, other = Path("/dev/shm", prefix + "region"), Path("/dev/shm", "other_" + prefix)
    mine.touch()
    other.touch()
    try:
        guard, _, _ = guarded("exit 0", shm_prefix=prefix)
        guard.wait(20)
        assert not mine.exists()
        assert other.exists()
    finally:
        other.unlink()
