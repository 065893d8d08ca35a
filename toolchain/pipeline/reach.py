"""`reached`: the gRPC address of the server that a command line names, which is started if need be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from deploy.client import Client
from deploy.running import find_running
from toolchain.errors import UsageError
from toolchain.pipeline.serve import serve_artifact


def artifact_of(target: str) -> Path | None:
    """The artifact that `target` names; None if it is an address.

    Raises:
        UsageError: it is empty, or a directory that is no artifact.
    """
    if not target:
        raise UsageError("the target is empty", fix="name artifacts/NAME, or host:port")
    if (Path(target) / "manifest.json").is_file():
        return Path(target)
    if Path(target).is_dir():
        raise UsageError(f"{target} is not an artifact", why="there is no manifest.json in it")
    return None


@contextlib.contextmanager
def reached(target: str, artifact: Path | None, on_start: Callable[[], None]) -> Iterator[str]:
    """The address of `target`, or of the server of `artifact`: the one that `serve` runs, or a new one.

    A new one, before which `on_start` is called, lives as long as the block lasts.
    """
    if artifact is None:
        yield target
        return
    running = find_running(artifact)
    if running is not None:
        with Client(running.grpc) as client:
            is_ready = client.is_ready("ensemble")
        if is_ready:
            yield running.grpc
            return
    on_start()
    with serve_artifact(artifact) as server:
        yield server.endpoints.grpc
