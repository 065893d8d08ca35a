"""An OpenAI-compatible server that streams, on a port of its own, under closed and open loops."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from deploy.bench.figures import summarize
from deploy.bench.load import Record, put_load
from deploy.bench.openai import OpenAiTarget
from deploy.bench.orders import Order
from toolchain.errors import LaunchError, UsageError

GAP_S = 0.01


class Handler(BaseHTTPRequestHandler):
    """One word a token every 10 ms; prompts "fail", "break", "cut" and "hang" do as they say."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else the small packets wait for each other
    seen: list[dict[str, Any]]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        is_models = self.path == "/v1/models" and self.headers.get("Authorization") != "Bearer wrong"
        self._reply(200 if is_models else 401, {"data": [{"id": "first"}]} if is_models else _error("no key"))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.seen.append({"path": self.path, "peer": self.client_address[1], **asked})
        is_chat = self.path.endswith("/chat/completions")
        prompt = asked["messages"][0]["content"] if is_chat else asked["prompt"]
        if prompt.startswith("fail"):
            self._reply(429, _error("the queue is full"))
            return
        if prompt.startswith("hang"):
            time.sleep(3)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(asked["max_tokens"]):
            if number:
                time.sleep(GAP_S)
            if prompt.startswith("break") and number == 2:
                self._event(_error("out of cache"))
                break
            if prompt.startswith("cut") and number == 2:
                self.close_connection = True
                return
            self._event({"choices": [{"delta": {"content": "w "}} if is_chat else {"text": "w "}]})
        usage = {"prompt_tokens": 7, "completion_tokens": asked["max_tokens"]}
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _reply(self, status: int, body: dict[str, Any]) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _event(self, body: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(body)}\n\n".encode())

    def _chunk(self, raw: bytes) -> None:
        self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "server_error"}}


@pytest.fixture
def url() -> Iterator[str]:
    Handler.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def load(url: str, orders: list[Order], **options: Any) -> list[Record]:
    target_options = {key: options.pop(key) for key in ("is_chat", "extra") if key in options}
    target = OpenAiTarget(url, **target_options)
    records: list[Record] = []
    put_load(target, orders, records, **options)
    target.close()
    return records


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_closed_loop_measures_what_the_server_does(url: str, is_chat: bool) -> None:
    records = load(url, [Order("hello", 5)] * 6, concurrency=2, is_chat=is_chat, extra={"ignore_eos": True})
    figures = summarize(records)
    assert figures["answered"] == 6
    assert figures["output_tokens"] == 30
    assert figures["input_tokens"] == 42
    assert figures["are_tokens_counted_by_server"]
    assert figures["tpot_s"]["p50"] > GAP_S / 2  # a busy machine may read the first response late
    assert figures["itl_s"]["count"] == 24
    assert figures["e2e_s"]["min"] >= 4 * GAP_S
    assert {seen["ignore_eos"] for seen in Handler.seen} == {True}
    assert {seen["path"] for seen in Handler.seen} == {f"/v1/{'chat/' * is_chat}completions"}
    assert len({seen["peer"] for seen in Handler.seen}) <= 3  # connections are kept


def test_an_open_loop_sends_at_the_arrivals(url: str) -> None:
    arrivals = [0.0, 0.05, 0.06, 0.3]
    records = load(url, [Order("hello", 10, arrival_s=at) for at in arrivals])
    for record, at in zip(records, arrivals, strict=True):
        assert record.is_answered
        assert at <= record.sent_s < at + 0.5
        assert record.late_s == pytest.approx(record.sent_s - at)


def test_failures_are_counted_by_message(url: str) -> None:
    prompts = ["fail", "fine", "break", "fail", "cut"]
    figures = summarize(load(url, [Order(prompt, 4) for prompt in prompts], concurrency=5))
    assert figures["answered"] == 1
    assert figures["errors"] == {
        "HTTP 429: the queue is full": 2,
        "out of cache": 1,
        "the answer broke off": 1,
    }


def test_a_silent_request_fails_and_the_others_go_on(url: str) -> None:
    orders = [Order("hang", 2), Order("fine", 2)]
    figures = summarize(load(url, orders, concurrency=2, timeout_s=0.7))
    assert figures["answered"] == 1
    assert figures["errors"] == {"nothing was heard for 0.7 s": 1}


def test_a_duration_ends_the_sending(url: str) -> None:
    started = time.perf_counter()
    records = load(url, [Order("hello", 3)] * 10_000, concurrency=2, duration_s=0.5)
    assert time.perf_counter() - started < 3
    assert all(record.is_answered and record.sent_s < 1.0 for record in records)
    assert len(records) > 4


def test_what_cannot_be_asked_is_said_before(url: str) -> None:
    with pytest.raises(UsageError, match=r"there is no model 'second'\n.*it has first"):
        OpenAiTarget(url, "second")
    with pytest.raises(LaunchError, match="HTTP 401\n  why: no key"):
        OpenAiTarget(url, token="wrong")
    with pytest.raises(LaunchError, match="no server answers"):
        OpenAiTarget("http://127.0.0.1:9/v1")
    with pytest.raises(UsageError, match="is no HTTP URL"):
        OpenAiTarget("http://:8000")
