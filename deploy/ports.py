"""Choose and check the ports that a server will listen on, before it is started."""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

from toolchain.errors import LaunchError


def choose_ports(host: str, wanted: dict[str, int]) -> dict[str, int]:
    """Check each port in `wanted` (what for -> number), and pick a free one for each 0.

    Raises:
        LaunchError: a port is taken (naming who holds it when that is visible), given twice, not allowed to
            this user or no port number; or `host` is not an address of this machine.
    """
    given = [port for port in wanted.values() if port]
    for use, port in wanted.items():
        if given.count(port) > 1:
            raise LaunchError(f"port {port} is given more than once", fix=f"give another --{use}-port, or 0")
    with contextlib.ExitStack() as held:
        # All are held until all are chosen, so that no two are the same.
        listeners = {use: held.enter_context(listen(host, port, use)) for use, port in wanted.items()}
        return {use: int(listener.getsockname()[1]) for use, listener in listeners.items()}


def listen(host: str, port: int, use: str) -> socket.socket:
    """A socket that listens on `port` of `host`, or on a free one for 0; `use` is what errors call it.

    Raises:
        LaunchError: as `choose_ports`.
    """
    if not 0 <= port <= 65535:
        raise LaunchError(f"{port} is not a port number", fix=f"give --{use}-port a number from 0 to 65535")
    with contextlib.ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            listener = stack.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1)
        except OSError as error:
            raise _cannot_listen(error, host, port, use) from error
        stack.pop_all()
        return listener


def shown(host: str) -> str:
    """How a client on this machine writes, in a URL, the host of a server that listens on `host`."""
    if ":" in host:
        return f"[{host}]"
    return "127.0.0.1" if host == "0.0.0.0" else host


def holder_of(port: int) -> str | None:
    """Who listens on TCP `port`, as "pid 123 (name)"; None when that is not visible to this user."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        # Other users' processes, and those that end while we look, are passed over.
        with contextlib.suppress(OSError):
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                return f"pid {process.name} ({(process / 'comm').read_text().strip()})"
    return None


def _cannot_listen(error: OSError, host: str, port: int, use: str) -> LaunchError:
    where = f"{host}:{port}"
    if error.errno == errno.EADDRINUSE:
        holder = holder_of(port)
        return LaunchError(
            f"the {use} port {port} is taken",
            where=where,
            why=f"{holder} listens on it" if holder else "another process listens on it",
            fix=f"stop that process, or give another --{use}-port (0 picks a free one)",
        )
    if error.errno == errno.EACCES:
        fix = f"give a --{use}-port above 1023"
    else:
        option = "--openai-host" if use == "openai" else "--host"
        fix = f"give {option} an address of this machine: 127.0.0.1 for this machine only, 0.0.0.0 for all"
    return LaunchError(f"cannot listen on the {use} port", where=where, why=error.strerror, fix=fix)
