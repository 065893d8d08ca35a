"""`llmbuild launch`: scripts and manifests that start a server on an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, path_argument, verb


@verb
def launch(
    artifact: Annotated[Path, typer.Argument(help="An artifact of `llmbuild build`.", parser=path_argument)],
    target: Annotated[str, typer.Option(help="local, mpirun, slurm or kubernetes.")] = "local",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory to write to; by default they are printed.", parser=path_argument
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Container to run, instead of NVIDIA's for the recipe's version.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs that a node has.", min=1, max=64)] = 8,
    claim: Annotated[
        str | None, typer.Option(help="kubernetes: the PersistentVolumeClaim with the model repository.")
    ] = None,
    host: Annotated[str, typer.Option(help="local: address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port.", min=1, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port.", min=1, max=65535)] = 8001,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port.", min=1, max=65535)] = 8002,
    drain: Annotated[
        int, typer.Option(help="Seconds that running requests get when it stops.", min=0, max=86400)
    ] = 30,
    json: JsonOption = False,
) -> None:
    """Write what starts a server on an artifact: a script, a Slurm job or Kubernetes manifests.

    Nothing is started. On several nodes Kubernetes gets a LeaderWorkerSet.

    Example: llmbuild launch artifacts/demo-vllm --target kubernetes --out launch
    """
    from toolchain.errors import UsageError
    from toolchain.pipeline.launch import render_launch, write_files

    if len({http_port, grpc_port, metrics_port}) < 3:
        raise UsageError("two of the ports are the same", fix="give each its own")
    files = render_launch(
        artifact,
        target,
        image=image,
        claim=claim,
        gpus_per_node=gpus_per_node,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        drain_s=drain,
    )
    if out is not None:
        write_files(files, out)
    if json:
        emit({"target": target, "directory": out, "files": files})
    elif out is None:
        for name, text in files.items():
            typer.echo(f"# ---- {name}\n{text}")
    else:
        for name in files:
            typer.echo(out / name)
