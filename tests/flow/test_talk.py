"""The client against a real Triton with a model that needs no mathematics (`tests/flow/echo`)."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.client import Chunk, Client, Summary
from deploy.find import find_triton
from deploy.server import TritonServer
from toolchain.errors import LaunchError, LlmbuildError, RequestError, ToolchainError, UsageError

pytestmark = pytest.mark.triton
ECHO = Path(__file__).parent / "echo"


@pytest.fixture(scope="module")
def server() -> Iterator[TritonServer]:
    try:
        find_triton()
    except ToolchainError as error:
        pytest.skip(str(error))
    server = TritonServer.start(ECHO)
    yield server
    server.kill()


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server.endpoints.grpc) as client:
        yield client


def test_streams_chunks_and_ends_with_a_summary(client: Client) -> None:
    *chunks, summary = client.generate("one ", max_tokens=3)
    assert chunks == [Chunk("one ")] * 3
    assert isinstance(summary, Summary)
    assert summary.tokens == 3
    assert summary.finish_reason == "length"
    assert 0 < summary.ttft_s < summary.duration_s
    assert summary.tokens_per_s > 0
    assert "3 tokens, first after" in str(summary)


def test_completes_in_one_piece_and_in_a_stream_alike(client: Client) -> None:
    assert client.complete("é ", max_tokens=3) == "é é é "
    assert client.complete("é ".encode(), max_tokens=3, stream=True) == "é é é "
    (chunk, summary) = client.generate("a", max_tokens=4, stream=False)
    assert chunk == Chunk("aaaa")
    assert isinstance(summary, Summary)
    assert summary.tokens == 4


def test_sends_what_is_given_and_no_more(client: Client) -> None:
    assert client.complete("inputs", max_tokens=1) == str(
        {"stream": [False], "exclude_input_in_output": [True]}
    )
    given = client.complete(
        "inputs", max_tokens=1, temperature=0.5, seed=2**64 - 1, stop_words=["a", "ü"], stream=True
    )
    assert given == str(
        {
            "stream": [True],
            "exclude_input_in_output": [True],
            "temperature": [0.5],
            "seed": [2**64 - 1],
            "stop_words": [b"a", "ü".encode()],
        }
    )


@pytest.mark.parametrize("stream", [True, False])
def test_tells_return_sequences_apart(client: Client, stream: bool) -> None:
    *chunks, summary = client.generate("x", max_tokens=2, num_return_sequences=3, stream=stream)
    texts = ["", "", ""]
    for chunk in chunks:
        assert isinstance(chunk, Chunk)
        texts[chunk.sequence] += chunk.text
    assert texts == ["xx", "xx", "xx"]
    assert isinstance(summary, Summary)
    assert summary.tokens == 6


def test_brings_log_probs_when_asked(client: Client) -> None:
    first, *_ = client.generate("x", max_tokens=2, return_log_probs=True)
    assert first == Chunk("x", log_probs=(-0.5,))


def test_many_requests_share_a_connection(client: Client) -> None:
    answers: dict[int, str] = {}

    def ask(n: int) -> None:
        answers[n] = client.complete(f"{n},", max_tokens=20, stream=True)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {n: f"{n}," * 20 for n in range(16)}


def test_an_error_after_some_tokens_is_raised_in_its_place(client: Client) -> None:
    parts = client.generate("raise", max_tokens=9)
    assert [next(parts), next(parts)] == [Chunk("raise")] * 2
    with pytest.raises(RequestError, match="ensemble: the third token is cursed"):
        next(parts)


def test_closing_the_iterator_cancels_the_request(server: TritonServer, client: Client) -> None:
    parts = client.generate("slow", max_tokens=10_000, request_id="the-vanished")
    assert next(parts) == Chunk("slow")
    parts.close()  # type: ignore[attr-defined]
    _await_line(server, "cancelled the-vanished")


def test_a_deadline_ends_the_request_on_both_sides(server: TritonServer, client: Client) -> None:
    with pytest.raises(RequestError, match=r"no complete answer within 0\.3 s"):
        list(client.generate("slow", max_tokens=10_000, request_id="the-late", timeout_s=0.3))
    _await_line(server, "cancelled the-late")


def test_a_model_that_is_not_served_is_a_request_error(client: Client) -> None:
    with pytest.raises(RequestError, match="unknown model: 'nobody'"):
        client.generate("x", max_tokens=1, model="nobody")


def test_a_tensor_that_the_model_lacks_is_a_usage_error(client: Client) -> None:
    with pytest.raises(
        UsageError, match=r"'ensemble' takes no top_k and no top_p\n  fix: it takes .*text_input"
    ):
        client.generate("x", max_tokens=1, top_k=1, top_p=0.5)


def test_is_ready_tells_for_server_and_models(client: Client) -> None:
    assert client.is_ready()
    assert client.is_ready("ensemble")
    assert not client.is_ready("ensemble", "nobody")


def test_the_http_port_is_no_grpc_port(server: TritonServer) -> None:
    with Client(server.endpoints.http.removeprefix("http://")) as client:
        with pytest.raises(LaunchError, match=r"no server answers\n(.*\n)*  fix: .*the gRPC port"):
            client.complete("x", max_tokens=1)
        assert not client.is_ready()


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    server: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with Client(server.endpoints.grpc) as client:
        assert client.complete("x", max_tokens=1) == "x"


def test_upstreams_own_way_of_asking_works(server: TritonServer) -> None:
    """tritonclient's stream, as the client scripts of upstream's repository use it."""
    import queue

    import numpy as np
    from tritonclient import grpc

    inputs = []
    for name, kind, value in [
        ("text_input", "BYTES", np.array([[b"x"]], dtype=object)),
        ("max_tokens", "INT32", np.array([[2]], dtype=np.int32)),
        ("stream", "BOOL", np.array([[True]])),
    ]:
        inputs.append(grpc.InferInput(name, [1, 1], kind))
        inputs[-1].set_data_from_numpy(value)
    answers: queue.Queue[bytes] = queue.Queue()
    with grpc.InferenceServerClient(server.endpoints.grpc) as client:
        client.start_stream(lambda result, error: answers.put(result.as_numpy("text_output").flat[0]))
        client.async_stream_infer("ensemble", inputs)
        assert [answers.get(timeout=30), answers.get(timeout=30)] == [b"x", b"x"]
        client.stop_stream()


def test_http_clients_get_server_sent_events(server: TritonServer) -> None:
    body = json.dumps({"text_input": "x", "max_tokens": 2, "stream": True}).encode()
    url = f"{server.endpoints.http}/v2/models/ensemble/generate_stream"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, body) as answer:
        events = answer.read().decode().split("\n\n")
    assert [json.loads(event[6:])["text_output"] for event in events if event] == ["x", "x"]


@pytest.mark.parametrize("how", ["server killed", "model process died"])
def test_a_server_that_dies_mid_stream_is_an_error_and_not_a_hang(how: str) -> None:
    with TritonServer.start(ECHO) as server, Client(server.endpoints.grpc) as client:
        parts = client.generate("slow", max_tokens=10_000)
        assert next(parts) == Chunk("slow")
        if how == "server killed":
            server.kill()
            with pytest.raises(LaunchError, match="the server went away before its answer was complete"):
                list(parts)
            with pytest.raises(LaunchError, match=r"the server went away|no server answers"):
                client.complete("x", max_tokens=1)
        else:
            with pytest.raises(LlmbuildError):
                client.complete("die", max_tokens=1, timeout_s=30)
            server.kill()


def _await_line(server: TritonServer, wanted: str) -> None:
    for _ in range(200):
        if wanted in server.log_tail():
            return
        time.sleep(0.05)
    raise AssertionError(f"not in the log within ten seconds: {wanted}")
