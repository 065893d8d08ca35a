"""What the routes need of HTTP: bounded bodies, clients that leave, and server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from deploy.gateway.errors import ApiError

T = TypeVar("T")
_log = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """The client closed its connection before it had its answer."""


def error_response(error: ApiError) -> Response:
    """The answer that an error is."""
    return JSONResponse(error.to_json(), error.status, headers=error.headers)


async def read_body(request: Request, most: int) -> bytes:
    """The whole body; not a byte beyond `most` is kept.

    Raises:
        ApiError: 413: it is longer.
        ClientGoneError: it never came to its end.
    """
    too_long = ApiError(413, f"the request is longer than {most} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_long
    body = bytearray()
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > most:
            raise too_long
    return bytes(body)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` returns, unless the client leaves first: then `work` is cancelled, to its end.

    To be called when the body has been read.

    Raises:
        ClientGoneError: the client left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: one for each of `chunks`, then `[DONE]`; an error is the last event.

    `chunks` is closed whatever happens: when it ends, when the client leaves, when the server stops.
    """

    media_type = "text/event-stream"

    def __init__(self, first: dict[str, Any], chunks: AsyncGenerator[dict[str, Any], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first = first
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, for as long as the client listens."""
        try:
            await unless_gone(receive, self._send(send))
        except ClientGoneError:
            _log.info("a client left before the end of its stream")

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with aclosing(self._chunks) as chunks:
            await send(_part(event(self._first)))
            try:
                async for chunk in chunks:
                    await send(_part(event(chunk)))
                await send(_part(DONE))
            except ApiError as error:
                await send(_part(event(error.to_json())))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(data: dict[str, Any]) -> bytes:
    """One event with `data` as JSON, which has no line breaks."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _part(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
