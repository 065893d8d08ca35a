"""The engine process as the Triton model sees it: start, talk to, notice its death, end."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

from messages import Add, EngineSettings, Failed, Ready, Report, Stop


class EngineDiedError(Exception):
    """The engine process ended, or could not load; the message is the reason."""


class EngineProcess:
    """One engine process. After `EngineDiedError` make a new one.

    `send` never blocks: a thread writes. So the reader is never kept waiting by a full socket, and
    two full sockets cannot wait for each other.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Start loading; `wait_ready` tells when it is done."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [python(), "-u", str(Path(__file__).with_name("engine.py")), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                # Ctrl-C in the terminal goes to the whole group: the server drains first, then ends us.
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._outbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self._writer.start()
        self._outbox.put(settings)

    def wait_ready(self) -> None:
        """Block until the engine is loaded. Raises EngineDiedError with the reason when it cannot be."""
        message = self._receive()
        assert isinstance(message, Ready)

    def send(self, command: Add | Stop) -> None:
        """Queue a command; lost without a word when the process is dead (`reports` will tell)."""
        self._outbox.put(command)

    def reports(self, timeout: float | None) -> list[Report]:
        """All reports that have arrived, after waiting up to `timeout` seconds (None: any time) for one."""
        reports: list[Report] = []
        while self._has_message(0 if reports else timeout):
            message = self._receive()
            assert isinstance(message, Report)
            reports.append(message)
        return reports

    def close(self, patience: float = 10.0) -> None:
        """Hang up and wait for the process to end; kill it when it does not. Its end wakes the reader."""
        self._outbox.put(None)
        self._writer.join(patience)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._connection.close()

    def _has_message(self, timeout: float | None) -> bool:
        try:
            return self._connection.poll(timeout)
        except OSError:  # closed, by us
            raise EngineDiedError("the engine was ended") from None

    def _receive(self) -> object:
        try:
            message = self._connection.recv()
        except (EOFError, OSError):
            raise EngineDiedError(self._cause_of_death()) from None
        if isinstance(message, Failed):
            raise EngineDiedError(message.reason)
        return message

    def _cause_of_death(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "the engine process hung up"
        if code < 0:
            return f"the engine process was ended by {signal.Signals(-code).name}"
        return f"the engine process ended with exit code {code}"

    def _write(self) -> None:
        while (message := self._outbox.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return
        # The engine reads to the end of the stream and goes.
        with socket.socket(fileno=os.dup(self._connection.fileno())) as stream:
            stream.shutdown(socket.SHUT_WR)


def python() -> str:
    """The interpreter to run the engine with: the one that we are embedded in, if it has a name."""
    candidates = [sys.executable, f"{sys.prefix}/bin/python3", shutil.which("python3")]
    for candidate in candidates:
        if candidate and Path(candidate).name.startswith("python"):
            return candidate
    raise EngineDiedError(f"no Python interpreter found: sys.executable is {sys.executable!r}")
