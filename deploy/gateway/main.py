"""The gateway's process: serves until its standard input ends, which is when its starter wants or dies."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading

import uvicorn

from deploy.gateway.app import make_app
from deploy.gateway.settings import GatewaySettings
from toolchain.errors import LlmbuildError

READY = "ready"
"""The line on standard output that says that requests are taken."""


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(READY, flush=True)


def main() -> None:
    """Arguments: the descriptor of a listening socket, and the settings as JSON."""
    descriptor, text = sys.argv[1:]
    settings = GatewaySettings.from_json(text)
    logging.basicConfig(level=logging.WARNING, format="gateway: %(levelname)s: %(message)s")
    try:
        app = make_app(settings)
    except LlmbuildError as error:
        sys.exit(str(error))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=settings.drain_s,
    )
    try:
        config.load()
    except OSError as error:  # ssl.SSLError is one
        sys.exit(f"the TLS certificate cannot be used: {error}")
    server = _Server(config)

    def watch() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    asyncio.run(server.serve([socket.socket(fileno=int(descriptor))]))
