"""`serve_artifact`: a Triton server on an artifact, which others can find and nobody collects meanwhile.

`gateway_settings`: what a gateway before it must know of the artifact.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.gateway.settings import GatewaySettings
from deploy.running import announced
from deploy.server import TritonServer
from toolchain.engine.tensorrt.compatible import here, require_loads
from toolchain.engine.tensorrt.stamp import is_engine_dir
from toolchain.model.spec import load_spec
from toolchain.pipeline.artifact import Artifact
from toolchain.recipe import load_recipe


@contextlib.contextmanager
def serve_artifact(artifact: Path | str, *, announce: bool = False, **options: Any) -> Iterator[TritonServer]:
    """Serve `artifact` for as long as the block lasts, then drain and stop.

    Args:
        artifact: the directory that a complete build left.
        announce: let `llmbuild generate ARTIFACT` of this user find the server.
        options: those of `TritonServer.start`.

    Raises:
        UsageError: it is not an artifact, or the build stopped before its repository.
        ToolchainError: its engines would not load on this machine.
        ToolchainError, LaunchError: as `TritonServer.start`.
    """
    opened = Artifact.open(Path(artifact))
    if "engine" in opened.manifest.stages and is_engine_dir(opened.dir("engine")):
        require_loads(opened.dir("engine"), here())
    with contextlib.ExitStack() as stack:
        stack.enter_context(opened.in_use())
        server = stack.enter_context(TritonServer.start(opened.dir("repository"), **options))
        if announce:
            stack.enter_context(announced(Path(artifact), server.endpoints.grpc, server.endpoints.http))
        yield server


def gateway_settings(artifact: Path | str, upstream: str, **options: Any) -> GatewaySettings:
    """Settings of a gateway before the server of `artifact` at `upstream`, the `host:port` of its gRPC port.

    Args:
        options: the fields of `GatewaySettings` that are not of the artifact.

    Raises:
        UsageError: it is not an artifact.
    """
    opened = Artifact.open(Path(artifact))
    checkpoint = opened.dir("quantize")
    longest = load_recipe(opened.recipe).engine.max_seq_len
    return GatewaySettings(
        upstream=upstream,
        model=opened.manifest.name,
        tokenizer_dir=str(checkpoint),
        max_seq_len=longest or load_spec(checkpoint).max_position_embeddings,
        **options,
    )
