"""Bodies, clients that leave, and events, against a hand-made ASGI server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from fastapi import Request

from deploy.gateway.errors import ApiError
from deploy.gateway.http import ClientGoneError, EventStream, event, read_body, unless_gone


def receiver(*messages: dict[str, Any], then_gone_after_s: float = 60) -> Callable[[], Any]:
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if left:
            return left.pop(0)
        await asyncio.sleep(then_gone_after_s)
        return {"type": "http.disconnect"}

    return receive


def part(body: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def read(*messages: dict[str, Any], length: str | None = None) -> bytes:
    headers = [(b"content-length", length.encode())] if length else []
    request = Request({"type": "http", "headers": headers}, receiver(*messages, then_gone_after_s=0))
    return asyncio.run(read_body(request, 6))


def test_a_body_is_read_up_to_its_limit() -> None:
    assert read(part(b"abc", True), part(b"def", False), length="6") == b"abcdef"
    for parts, length in (([part(b"abcd", True)] * 2, None), ([], "7")):
        with pytest.raises(ApiError, match="longer than 6 bytes") as caught:
            read(*parts, length=length)
        assert caught.value.status == 413
    with pytest.raises(ClientGoneError):
        read(part(b"abc", True))


class Chunks:
    """Counts up for ever, slowly, and notes how it ends."""

    def __init__(self, count: int, error: ApiError | None = None) -> None:
        self.ended = False
        self._count, self._error = count, error

    async def make(self) -> AsyncGenerator[dict[str, Any], None]:
        try:
            for number in range(self._count):
                await asyncio.sleep(0.001)
                yield {"n": number}
            if self._error:
                raise self._error
        finally:
            self.ended = True


def serve(chunks: Chunks, *, gone_after_s: float = 60) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        stream = EventStream({"n": "first"}, chunks.make())
        await stream({"type": "http"}, receiver(then_gone_after_s=gone_after_s), send)

    asyncio.run(run())
    return sent


def test_events_are_sent_one_by_one_and_done_at_the_end() -> None:
    chunks = Chunks(2)
    start, *parts = serve(chunks)
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert b"content-length" not in headers
    assert [each["body"] for each in parts] == [
        b'data: {"n":"first"}\n\n', b'data: {"n":0}\n\n', b'data: {"n":1}\n\n', b"data: [DONE]\n\n", b"",
    ]  # fmt: skip
    assert [each["more_body"] for each in parts] == [True, True, True, True, False]
    assert chunks.ended


def test_an_error_is_the_last_event() -> None:
    *_, error, end = serve(Chunks(1, ApiError(503, "the engine died")))
    assert json.loads(error["body"].removeprefix(b"data: "))["error"]["message"] == "the engine died"
    assert end["more_body"] is False


def test_a_client_that_leaves_closes_the_chunks() -> None:
    chunks = Chunks(10**9)
    sent = serve(chunks, gone_after_s=0.05)
    assert chunks.ended
    assert sent[-1]["more_body"] is True


def test_work_for_a_client_that_leaves_is_cancelled_to_its_end() -> None:
    ended = False

    async def work() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended = True

    with pytest.raises(ClientGoneError):
        asyncio.run(unless_gone(receiver(then_gone_after_s=0.01), work()))
    assert ended


def test_an_event_is_one_line_of_utf8() -> None:
    assert event({"text": "ü\n\u2028"}) == 'data: {"text":"ü\\n\u2028"}\n\n'.encode()
