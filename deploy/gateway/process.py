"""`Gateway`: the gateway in a process of its own, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import importlib.util
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from deploy.gateway.access import read_keys
from deploy.gateway.settings import GatewaySettings
from deploy.ports import listen, shown
from toolchain.errors import LaunchError, ToolchainError, UsageError

# Not `-m`, which looks for modules in the working directory first.
_PROGRAM = "import sys; sys.path[:] = filter(None, sys.path); from deploy.gateway.main import main; main()"
_START_S = 60.0
_KILL_AFTER_S = 8.0


class Door:
    """Where a gateway will listen: taken before anything is started, so that a taken port is told at once.

    Raises:
        ToolchainError: the gateway's packages are not installed.
        LaunchError: it cannot listen there.
        UsageError: the keys or the TLS files cannot be used.
    """

    def __init__(
        self, host: str, port: int, *, api_keys: Path | None, tls_cert: Path | None, tls_key: Path | None
    ) -> None:
        missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
        if missing:
            raise ToolchainError(
                f"the gateway needs {' and '.join(missing)}", fix="pip install 'llmbuild[gateway]'"
            )
        read_keys(api_keys)
        _check_tls(tls_cert, tls_key)
        self.socket = listen(host, port, "openai")
        scheme = "https" if tls_cert else "http"
        self.url = f"{scheme}://{shown(host)}:{self.socket.getsockname()[1]}/v1"

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Gateway:
    """A gateway that runs. Made by `start`; a context manager that drains it at the end."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, drain_s: float) -> None:
        self._process = process
        self._drain_s = drain_s
        self.url = url
        self.pid = process.pid

    @classmethod
    def start(cls, door: Door, settings: GatewaySettings) -> Gateway:
        """Start it behind `door`, and return when it takes requests. Its log goes to standard error.

        Raises:
            LaunchError: it did not come up; its log says why.
        """
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(door.socket.fileno()), settings.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[door.socket.fileno()],
            start_new_session=True,  # Ctrl-C is for the starter, which then stops this in its order
        )
        door.socket.close()  # now the process's alone: when that ends, nobody listens
        gateway = cls(process, door.url, settings.drain_s)
        assert process.stdout
        try:
            ready, _, _ = select.select([process.stdout], [], [], _START_S)
            if not ready or not process.stdout.readline():
                raise LaunchError("the gateway could not be started", fix="look at its log above")
        except BaseException:
            gateway.kill()
            raise
        return gateway

    def check(self) -> None:
        """Raises LaunchError if it has ended by itself."""
        status = self._process.poll()
        if status is not None:
            how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
            raise LaunchError(
                f"the gateway ended by itself ({how})", fix="look at its log above; start again"
            )

    def stop(self) -> None:
        """Take no new request, let those under way end within the drain time, then end it.

        Interrupted by an exception, such as a second Ctrl-C, it is killed at once.
        """
        assert self._process.stdin
        try:
            self._process.stdin.close()
            self._process.wait(self._drain_s + _KILL_AFTER_S)
        except BaseException as error:
            self.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
        self._release()

    def kill(self) -> None:
        """End it at once, its answers with it."""
        self._process.kill()
        self._process.wait()
        self._release()

    def __enter__(self) -> Gateway:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _release(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()


def _check_tls(cert: Path | None, key: Path | None) -> None:
    if (cert is None) != (key is None):
        raise UsageError("TLS needs a certificate and its key", fix="give both --tls-cert and --tls-key")
    if cert is None or key is None:
        return
    import ssl

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key)
    except OSError as error:
        raise UsageError(
            "the TLS certificate and key cannot be used",
            where=f"{cert}, {key}",
            why=error.strerror or str(error),
            fix="give PEM files that belong together and can be read",
        ) from error
