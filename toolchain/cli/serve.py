"""`llmbuild serve`: start Triton on an artifact and stay with it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, finite, path_argument, table, verb

GATEWAY = "OpenAI-compatible gateway"
_LOOK_EVERY_S = 5.0  # at the gateway; the server is watched all the time


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
    openai: Annotated[
        bool,
        typer.Option("--openai", help="Put a gateway with OpenAI's API before it.", rich_help_panel=GATEWAY),
    ] = False,
    openai_host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 by default.", rich_help_panel=GATEWAY)
    ] = None,
    openai_port: Annotated[
        int | None,
        typer.Option(
            help="Port; 0 takes a free one, 8080 by default.", min=0, max=65535, rich_help_panel=GATEWAY
        ),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            help="A file with the keys that clients must send, one a line; else those of $LLMBUILD_API_KEYS.",
            rich_help_panel=GATEWAY,
        ),
    ] = None,
    rate_limit: Annotated[
        int | None,
        typer.Option(help="Requests a minute of one key, or address.", min=1, rich_help_panel=GATEWAY),
    ] = None,
    max_request_bytes: Annotated[
        int | None,
        typer.Option(help="Longest request body; 1 MiB by default.", min=1, rich_help_panel=GATEWAY),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web pages of this origin may ask; may be repeated.", rich_help_panel=GATEWAY),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate chain, PEM: speak HTTPS.", rich_help_panel=GATEWAY)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="The certificate's key, PEM.", rich_help_panel=GATEWAY)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Serve an artifact with Triton until Ctrl-C: start it, wait for every model, print the endpoints.

    With --openai a gateway with OpenAI's API stands before it, and ends with it.

    Example: llmbuild serve artifacts/demo-int4 --http-port 0 --grpc-port 0 --metrics-port 0

    Example: llmbuild serve artifacts/demo-int4 --openai --openai-port 8080
    """
    from deploy.find import find_triton
    from toolchain.errors import UsageError
    from toolchain.pipeline.serve import gateway_settings, serve_artifact

    ports = [port for port in (http_port, grpc_port, metrics_port) if port]
    if len(set(ports)) < len(ports):
        raise UsageError(
            "two of the ports are the same",
            why=f"HTTP {http_port}, gRPC {grpc_port}, metrics {metrics_port}",
            fix="give each its own, or 0 for a free one",
        )

    asked = {
        "--openai-host": openai_host,
        "--openai-port": openai_port,
        "--api-keys": api_keys,
        "--rate-limit": rate_limit,
        "--max-request-bytes": max_request_bytes,
        "--cors-origin": cors_origin,
        "--tls-cert": tls_cert,
        "--tls-key": tls_key,
    }
    if not openai and (idle := [name for name, value in asked.items() if value not in (None, [])]):
        raise UsageError(f"{' and '.join(idle)}: of the gateway, which was not asked for", fix="add --openai")

    with contextlib.ExitStack() as stack:
        if openai:
            from deploy.gateway.process import Door

            address = openai_host or "127.0.0.1", 8080 if openai_port is None else openai_port
            door = stack.enter_context(Door(*address, api_keys=api_keys, tls_cert=tls_cert, tls_key=tls_key))
        server = stack.enter_context(
            serve_artifact(
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
            )
        )
        endpoints = dict(vars(server.endpoints))
        check = None
        if openai:
            from deploy.gateway.process import Gateway

            given = {"requests_per_minute": rate_limit, "max_request_bytes": max_request_bytes}
            settings = gateway_settings(
                artifact,
                server.endpoints.grpc,
                api_keys=str(api_keys) if api_keys else None,
                cors_origins=tuple(cors_origin or ()),
                tls_cert=str(tls_cert) if tls_cert else None,
                tls_key=str(tls_key) if tls_key else None,
                drain_s=drain,
                **{name: value for name, value in given.items() if value is not None},
            )
            gateway = stack.enter_context(Gateway.start(door, settings))
            endpoints["openai"] = gateway.url
            check = gateway.check
        if json:
            emit({"pid": server.pid, **endpoints})
        else:
            rows = [[name, address] for name, address in endpoints.items()]
            table(["endpoint", "address"], rows, title=f"{artifact} is ready (pid {server.pid})")
            typer.echo(f'\ntry: llmbuild generate {artifact} "def read_lines(path):"')
        with contextlib.suppress(KeyboardInterrupt):
            # Until Ctrl-C, which is how serving ends; leaving the block drains.
            while not server.wait(_LOOK_EVERY_S):
                if check is not None:
                    check()
        typer.echo("stopping: requests in flight may finish", err=True)
