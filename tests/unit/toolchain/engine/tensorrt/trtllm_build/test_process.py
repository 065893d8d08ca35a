"""A child process: its lines, its status, and that nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolchain.engine.tensorrt.trtllm_build.process import run_logged

from .conftest import assert_dead

SHELL = ("bash", "-c")


def run(script: str, tmp_path: Path, **options: float) -> tuple[int, list[str]]:
    lines: list[str] = []
    log = tmp_path / "log"
    status = run_logged([*SHELL, script], log, cwd=tmp_path, env=os.environ, on_line=lines.append, **options)
    return status, lines


def test_lines_arrive_whole_and_the_log_has_every_byte(tmp_path: Path) -> None:
    script = (
        r"printf 'one\ntw'; sleep 0.3; printf 'o\n10%%\r20%%\r\n\xff\n'; echo error >&2; printf end; exit 3"
    )
    status, lines = run(script, tmp_path)
    assert status == 3
    assert lines == ["one", "two", "10%", "20%", "\ufffd", "error", "end"]
    assert (tmp_path / "log").read_bytes().endswith(b"\xff\nerror\nend")


def test_a_signal_is_a_negative_status(tmp_path: Path) -> None:
    assert run("kill -9 $$", tmp_path)[0] == -signal.SIGKILL


def test_a_child_that_outlives_the_command_is_ended(tmp_path: Path) -> None:
    status, (pid,) = run("sleep 600 & echo $!", tmp_path)
    assert status == 0
    assert_dead(int(pid))


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        run("trap '' TERM; echo $$ > pid; while :; do sleep 0.1; done", tmp_path, timeout_s=0.5, grace_s=0.5)
    assert time.monotonic() - began < 10
    assert_dead(int((tmp_path / "pid").read_text()))


def test_the_command_ends_with_who_started_it(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib; from toolchain.engine.tensorrt.trtllm_build.process import run_logged; "
        "here = pathlib.Path(sys.argv[1]); "
        "run_logged(['bash', '-c', 'echo $$ > pid; exec sleep 600'], here / 'log', cwd=here, env=os.environ)"
    )
    starter = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
        assert starter.poll() is None
        time.sleep(0.02)
    starter.kill()
    starter.wait()
    assert_dead(int((tmp_path / "pid").read_text()))


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        run_logged(["/nowhere"], tmp_path / "log", cwd=tmp_path, env={})
