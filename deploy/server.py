"""Start a Triton server on a model repository, watch it, and stop it.

    with TritonServer.start(repository) as server:
        print(server.endpoints.grpc)

The server listens on loopback unless told otherwise, runs under a guard process that ends it when this one
dies (`deploy.guard`), and either becomes ready or fails with the reason from its log.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from deploy import shm
from deploy.find import Triton, find_triton, prepare
from deploy.ports import choose_ports, shown
from deploy.triton_log import LogFollower, failures
from toolchain.errors import LaunchError, UsageError

# Models are local files; nothing in the server looks elsewhere or reports anywhere. A user's setting wins.
QUIET_ENV = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "1",  # the repository may be a store's, which nobody modifies
    "PYTHONUNBUFFERED": "1",
}
KILL_AFTER_S = 3.0
"""Seconds that the server gets beyond its exit timeout: an idle open gRPC stream holds it up for ever."""
_LOOK_EVERY_S = 2.0
_SUSPECT_S = 3.0
"""Seconds that a dead model process, or a model that is not ready, gets to be explained in the log."""


@dataclass(frozen=True)
class Endpoints:
    """Where the server answers: two URLs, and `host:port` for gRPC as tritonclient takes it."""

    http: str
    grpc: str
    metrics: str


class TritonServer:
    """A running server. Made by `start`; a context manager that stops it at the end."""

    def __init__(
        self,
        command: Sequence[str],
        env: dict[str, str],
        endpoints: Endpoints,
        *,
        cwd: Path,
        exit_timeout_s: float,
        log_file: Path | None,
        on_log: Callable[[str], None] | None,
    ) -> None:
        self.endpoints = endpoints
        self._exit_timeout_s = exit_timeout_s
        self._stopping = False
        shm_prefix = f"llmbuild_{os.getpid()}_{secrets.token_hex(4)}_"
        log = _open_log(log_file) if log_file else None
        self._control, theirs = socket.socketpair()
        with theirs:
            guard = [sys.executable, "-I", "-S", str(Path(__file__).with_name("guard.py"))]
            self._guard = subprocess.Popen(
                [
                    *guard, str(theirs.fileno()), str(exit_timeout_s + KILL_AFTER_S), shm_prefix, *command,
                    f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
                ],
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )  # fmt: skip
        assert self._guard.stdout
        self._log = LogFollower(self._guard.stdout, log, on_log)
        # The guard tells the server's pid, or nothing when the binary could not be executed.
        self.pid = int(self._control.recv(32) or 0)

    @classmethod
    def start(
        cls,
        repository: str | os.PathLike[str],
        *,
        host: str = "127.0.0.1",
        http_port: int = 0,
        grpc_port: int = 0,
        metrics_port: int = 0,
        models: Sequence[str] | None = None,
        triton: Triton | None = None,
        log_file: Path | None = None,
        on_log: Callable[[str], None] | None = None,
        timeout_s: float = 600.0,
        exit_timeout_s: int = 30,
        extra_args: Sequence[str] = (),
    ) -> TritonServer:
        """Start Triton on `repository` and return when each of its models is ready.

        Args:
            repository: a model repository; every directory in it with a `config.pbtxt` is a model.
            host: the address to listen on, for HTTP, gRPC and metrics alike.
            http_port, grpc_port, metrics_port: 0 picks a free one.
            models: the models to wait for; all of the repository's when not given.
            triton: the server to start; `find_triton()` when not given.
            log_file: where the server's log is appended.
            on_log: called with each line of the log, from a thread of its own.
            timeout_s: how long loading may take.
            exit_timeout_s: how long `stop` lets requests in flight go on, in whole seconds.
            extra_args: further arguments for tritonserver.

        Raises:
            UsageError: `repository` holds no model.
            ToolchainError: there is no usable Triton.
            LaunchError: a port is taken, a model does not load, the server died, or time ran out.
        """
        repository = Path(repository)
        names = list(models) if models is not None else _models_of(repository)
        shm.check_shared_memory(len(names), on_log)
        triton = triton or find_triton()
        runtime = prepare(triton)
        wanted = {"http": http_port, "grpc": grpc_port, "metrics": metrics_port}
        ports = choose_ports(host, wanted)
        command = [
            str(triton.binary.absolute()),
            f"--model-repository={repository.resolve()}",
            *([f"--backend-directory={runtime.backends}"] if runtime.backends else []),
            *(f"--{use}-address={host}" for use in wanted),
            *(f"--{use}-port={port}" for use, port in ports.items()),
            "--allow-gpu-metrics=false",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={exit_timeout_s}",
            *extra_args,
        ]
        env = {**QUIET_ENV, **os.environ, **runtime.env}
        endpoints = Endpoints(
            http=f"http://{shown(host)}:{ports['http']}",
            grpc=f"{shown(host)}:{ports['grpc']}",
            metrics=f"http://{shown(host)}:{ports['metrics']}/metrics",
        )
        server = cls(
            command,
            env,
            endpoints,
            cwd=repository.resolve(),  # some engines take paths in the repository as they are
            exit_timeout_s=exit_timeout_s,
            log_file=log_file,
            on_log=on_log,
        )
        try:
            server._await_models(names, timeout_s)
        except BaseException:
            server.kill()
            raise
        return server

    @property
    def is_alive(self) -> bool:
        """Whether the server still runs."""
        return self._guard.poll() is None

    def log_tail(self, count: int = 20) -> list[str]:
        """The last lines of the log, without the tables that Triton draws."""
        return self._log.tail(count)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the server to end: True when it was stopped, False when `timeout_s` passed before.

        A model whose process died is taken for the server's end, and the server is killed: Triton goes on
        calling itself ready, but would let the requests that the model had in flight hang for ever.

        Raises:
            LaunchError: it ended by itself, or a model's process died; the reason is from its log.
        """
        deadline = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        died = False
        while self.is_alive and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._guard.wait(min(left, _LOOK_EVERY_S))
                break
            # Twice in a row: Triton reaps a model that was unloaded by request.
            before, died = died, _has_dead_child(self.pid)
            if died and before and not self._stopping:
                self.kill()
                raise self._failed("the process of a model died, so the server was stopped")
        if self.is_alive:
            return False
        self._log.join(2.0)
        if not self._stopping:
            raise self._failed("Triton ended by itself", self._guard.returncode)
        return True

    def stop(self) -> None:
        """Drain and stop: no new request is taken, those in flight have `exit_timeout_s`, then it is killed.

        Interrupted by an exception, such as a second Ctrl-C, it kills the server at once. Stopping twice is
        harmless.
        """
        self._stopping = True
        try:
            self._tell(b"stop\n")
            self._guard.wait(self._exit_timeout_s + 2 * KILL_AFTER_S)
        except BaseException as error:
            self.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        self._release()

    def kill(self) -> None:
        """End the server at once, its requests with it."""
        self._stopping = True
        self._tell(b"kill\n")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(2 * KILL_AFTER_S)
        self._guard.kill()  # the kernel ends the server when its guard dies
        self._guard.wait()
        self._release()

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _release(self) -> None:
        self._log.join(2.0)
        self._control.close()

    def _tell(self, order: bytes) -> None:
        with contextlib.suppress(OSError):
            self._control.send(order)

    def _await_models(self, names: Sequence[str], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        waiting, suspect_since = list(names), 0.0
        while True:
            if not self.is_alive:
                self._log.join(2.0)
                raise self._failed("Triton could not be started", self._guard.returncode)
            states = {name: self._is_ready(name) for name in waiting}
            waiting = [name for name, ready in states.items() if not ready]
            if not waiting:
                return
            # Triton answers only after it has tried every model, and notices most stubs that die, but not one
            # that cannot start at all: for that it waits for ever. Both get the time to say why.
            now = time.monotonic()
            if False in states.values() or _has_dead_child(self.pid):
                suspect_since = suspect_since or now
                if now - suspect_since > _SUSPECT_S:
                    raise self._failed(f"Triton did not load {_quoted(waiting)}")
            else:
                suspect_since = 0.0
            if now > deadline:
                raise self._failed(f"Triton did not load {_quoted(waiting)} within {timeout_s:g} s")
            time.sleep(0.1)

    def _is_ready(self, model: str) -> bool | None:
        """True or False as the server says; None while it does not answer."""
        connection = http.client.HTTPConnection(self.endpoints.http.removeprefix("http://"), timeout=5.0)
        try:
            connection.request("GET", f"/v2/models/{model}/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _failed(self, what: str, status: int | None = None) -> LaunchError:
        """The error for a server that did not come up or went away, with the reasons that its log gives."""
        found = failures(list(self._log.lines))
        reasons = [f"{f.model}: {f.reason}" if f.model else f.reason for f in found]
        if status is not None:
            what += f" (exit status {status})" if status < 128 else f" (killed by signal {status - 128})"
        why = "; ".join(reasons[:3]) or "\n       ".join(self.log_tail(6)) or "it wrote no log"
        fix = None
        if "No module named" in why:
            fix = "install the missing package into the environment that runs llmbuild serve"
        elif "unable to find backend library" in why or "is not installed here" in why:
            fix = "serve it in NVIDIA's container: `llmbuild launch` writes what starts that"
        elif "shared memory" in why or status == 128 + signal.SIGBUS:
            fix = shm.FIX
        return LaunchError(what, why=why, fix=fix)


def _models_of(repository: Path) -> list[str]:
    models = sorted(config.parent.name for config in repository.glob("*/config.pbtxt"))
    if not models:
        raise UsageError(
            "this is no Triton model repository",
            where=str(repository),
            why="no directory in it has a config.pbtxt",
            fix="give the directory that `llmbuild build` made, or its `repository`",
        )
    return models


def _open_log(path: Path) -> IO[bytes]:
    try:
        return path.open("ab", buffering=0)
    except OSError as error:
        raise LaunchError(
            "cannot write the log file", where=str(path), why=error.strerror, fix="name a writable file"
        ) from error


def _has_dead_child(pid: int) -> bool:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            if state == "Z" and int(parent) == pid:
                return True
    return False


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)
