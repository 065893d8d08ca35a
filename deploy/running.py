"""Which server of this user serves which artifact: how `generate ARTIFACT` finds the one of `serve`.

One small file per artifact in a directory that only this user can write, below the system's temporary
directory. A file whose process is gone counts for nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Running:
    """A server that was announced: the process that started it, and its addresses (host:port).

    `started` is when that process began, in clock ticks since boot: a number alone may be another's by now.
    """

    pid: int
    started: int
    grpc: str
    http: str


def find_running(artifact: Path) -> Running | None:
    """The server of `artifact` that is up according to its announcement; None if there is none."""
    try:
        running = Running(**json.loads(_file(artifact).read_text()))
        is_same = _start_time(running.pid) == running.started
    except (OSError, ValueError, TypeError):
        return None
    return running if is_same else None


@contextlib.contextmanager
def announced(artifact: Path, grpc: str, http: str) -> Iterator[None]:
    """Announce this process as the server of `artifact` for as long as the block lasts.

    A server is worth having even if nobody can be told of it: what goes wrong here is only logged.
    """
    try:
        file = _announce(artifact, Running(os.getpid(), _start_time(os.getpid()), grpc, http))
    except OSError as error:
        _log.warning("`llmbuild generate %s` will not find this server: %s", artifact, error)
        yield
        return
    try:
        yield
    finally:
        mine = find_running(artifact)
        if mine is not None and mine.pid == os.getpid():
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)


def _announce(artifact: Path, running: Running) -> Path:
    file = _file(artifact)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(asdict(running)))
    temporary.replace(file)
    return file


def _start_time(pid: int) -> int:
    """When a process began, in clock ticks since boot. Raises OSError if there is no such process."""
    status = Path(f"/proc/{pid}/stat").read_text()
    # proc(5): field 22. The second is the command in parentheses, which may hold anything.
    return int(status.rpartition(")")[2].split()[22 - 3])


def _file(artifact: Path) -> Path:
    """Where the announcement of `artifact` (by its path, not its version) is kept."""
    path = os.path.abspath(artifact)  # noqa: PTH100 - not resolve(): a rebuild changes what it links to
    directory = Path(tempfile.gettempdir()) / f"llmbuild-{os.getuid()}"
    if directory.exists() and directory.stat().st_uid != os.getuid():
        directory = Path.home() / ".cache" / "llmbuild" / "servers"
        directory.parent.mkdir(parents=True, exist_ok=True)
    return directory / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
