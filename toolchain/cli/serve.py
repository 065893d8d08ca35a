"""`llmbuild serve`: start Triton on an artifact and stay with it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, finite, path_argument, table, verb


@verb
def serve(
    artifact: Annotated[
        Path,
        typer.Argument(help="An artifact of `llmbuild build`.", parser=path_argument),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="HTTP port; 0 takes a free one.", min=0, max=65535)] = 8000,
    grpc_port: Annotated[int, typer.Option(help="gRPC port; 0 takes a free one.", min=0, max=65535)] = 8001,
    metrics_port: Annotated[
        int, typer.Option(help="Prometheus port; 0 takes a free one.", min=0, max=65535)
    ] = 8002,
    tritonserver: Annotated[Path | None, typer.Option(help="The tritonserver to run.")] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that loading may take.", min=0, callback=finite)
    ] = 600.0,
    drain: Annotated[
        int, typer.Option(help="Seconds that running requests get when it stops.", min=0, max=86400)
    ] = 30,
    quiet: Annotated[bool, typer.Option("--quiet", help="Do not print the server's log.")] = False,
    json: JsonOption = False,
) -> None:
    """Serve an artifact with Triton until Ctrl-C: start it, wait for every model, print the endpoints.

    Example: llmbuild serve artifacts/demo-int4 --http-port 0 --grpc-port 0 --metrics-port 0
    """
    from deploy.find import find_triton
    from toolchain.errors import UsageError
    from toolchain.pipeline.serve import serve_artifact

    given = [port for port in (http_port, grpc_port, metrics_port) if port]
    if len(set(given)) < len(given):
        raise UsageError(
            "two of the ports are the same",
            why=f"HTTP {http_port}, gRPC {grpc_port}, metrics {metrics_port}",
            fix="give each its own, or 0 for a free one",
        )

    with serve_artifact(
        artifact,
        announce=True,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        triton=find_triton(tritonserver) if tritonserver else None,
        timeout_s=timeout,
        exit_timeout_s=drain,
        on_log=None if quiet else (lambda line: typer.echo(line, err=True)),
    ) as server:
        endpoints = vars(server.endpoints)
        if json:
            emit({"pid": server.pid, **endpoints})
        else:
            rows = [[name, address] for name, address in endpoints.items()]
            table(["endpoint", "address"], rows, title=f"{artifact} is ready (pid {server.pid})")
            typer.echo(f'\ntry: llmbuild generate {artifact} "def read_lines(path):"')
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()  # until Ctrl-C, which is how serving ends; leaving the block drains
        typer.echo("stopping: requests in flight may finish", err=True)
