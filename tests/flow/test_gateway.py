"""The OpenAI-compatible gateway: a real Triton, the gateway's own process, OpenAI's client and plain HTTP."""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from tokenizers import Tokenizer

from deploy.gateway.process import Door, Gateway
from deploy.gateway.settings import GatewaySettings
from deploy.server import TritonServer
from toolchain.pipeline.build import build_recipe
from toolchain.pipeline.serve import gateway_settings, serve_artifact
from toolchain.pipeline.store import Store
from toolchain.recipe import load_recipe

pytestmark = [pytest.mark.triton, pytest.mark.slow]

CONTEXT = 1024
PROMPT = "def read_lines(path):"
CHAT: list[Any] = [{"role": "user", "content": "Write a function that reads a file"}]


@dataclass(frozen=True)
class Place:
    """A server, the gateway before it, and what a second gateway would be told."""

    server: TritonServer
    gateway: Gateway
    settings: GatewaySettings
    tokenizer: Tokenizer

    @property
    def root(self) -> str:
        return self.gateway.url.removesuffix("/v1")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("gateway")
    file = root / "tiny.yaml"
    source = Path(__file__).parents[2] / "models/demo"
    file.write_text(
        f"schema: 1\nname: tiny\nmodel: {{source: {source}}}\nquantization: {{method: none}}\n"
        f"engine: {{guided_decoding: true, max_seq_len: {CONTEXT}, max_batch_size: 4}}\n"
        "deploy: {max_queue_size: 4}\n"
    )
    with Store.open(root / "store") as store:
        artifact = build_recipe(load_recipe(file), out=root, store=store).artifact
    with serve_artifact(artifact) as server:
        settings = gateway_settings(artifact, server.endpoints.grpc)
        with started(settings) as gateway:
            tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
            yield Place(server, gateway, settings, tokenizer)


def started(settings: GatewaySettings, **door: Any) -> Gateway:
    files = {"api_keys": settings.keys_file, "tls_cert": None, "tls_key": None}
    with Door("127.0.0.1", 0, **(files | door)) as opened:
        return Gateway.start(opened, settings)


@pytest.fixture
def client(place: Place) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=place.gateway.url, api_key="unused", max_retries=0) as client:
        yield client


def test_health_and_models(place: Place, client: openai.OpenAI) -> None:
    assert httpx.get(f"{place.root}/health").json() == {"status": "ok"}
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other' here") as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found"


def test_completion_streamed_and_whole_are_the_same(place: Place, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert whole.object == "text_completion"
    assert len(text) > 20
    assert whole.choices[0].text == text
    assert len(chunks) > 4
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["length"]
    assert chunks[-1].choices == []
    usage = whole.usage
    assert usage is not None
    assert usage.prompt_tokens == len(place.tokenizer.encode(PROMPT).ids)
    assert usage.completion_tokens == 24
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert chunks[-1].usage == usage


def test_default_length_of_a_completion_is_openai_s(client: openai.OpenAI) -> None:
    usage = client.completions.create(model="tiny", prompt=PROMPT, temperature=0).usage
    assert usage is not None
    assert usage.completion_tokens == 16


def test_chat_streamed_and_whole_are_the_same(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": CHAT, "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert whole.choices[0].message.role == "assistant"
    assert chunks[0].choices[0].delta.role == "assistant"
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert said
    assert said == whole.choices[0].message.content
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason
    parts = [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, *CHAT]
    longer = client.chat.completions.create(model="tiny", messages=parts, max_completion_tokens=3)
    assert longer.usage is not None
    assert whole.usage is not None
    assert longer.usage.prompt_tokens > whole.usage.prompt_tokens
    assert longer.usage.completion_tokens <= 3


@pytest.mark.parametrize("stream", [True, False])
def test_stop_ends_before_the_word(client: openai.OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {
        "model": "tiny",
        "prompt": "import os\nimport ",
        "temperature": 0,
        "max_tokens": 60,
    }
    free = client.completions.create(**options).choices[0].text
    word = free[4:7]
    answer = client.completions.create(**options, stop=[word, "never there"], stream=stream)
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    assert "".join(choice.text for choice in choices) == free[: free.index(word)]
    assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_n_of_several_prompts_come_in_order(client: openai.OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": [PROMPT, "import "], "max_tokens": 8}
    answer = client.completions.create(**options, n=2, seed=3, stream=stream)
    responses = list(answer) if stream else [answer]
    texts = ["", "", "", ""]
    for response in responses:
        for choice in response.choices:
            texts[choice.index] += choice.text
    assert len(set(texts)) == 4
    alone = client.completions.create(**options | {"prompt": "import "}, n=2, seed=3)
    assert [choice.text for choice in alone.choices] == texts[2:]
    if not stream:
        assert 16 < responses[0].usage.completion_tokens <= 32


def test_seed_repeats_and_without_one_answers_differ(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> str:
        made = client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=24, **options)
        return made.choices[0].message.content or ""

    assert ask(seed=-5) == ask(seed=-5) != ask(seed=6)
    assert len({ask() for _ in range(3)}) > 1
    assert ask(temperature=0) == ask(temperature=0) == ask(top_p=0)


def test_penalties_arrive(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "prompt": "import ", "max_tokens": 40, "temperature": 0}
    penalties = ({}, {"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 3})
    texts = [client.completions.create(**options, extra_body=each).choices[0].text for each in penalties]
    assert len(set(texts)) == 4


@pytest.mark.parametrize("stream", [True, False])
def test_log_probs_are_of_the_text(client: openai.OpenAI, stream: bool) -> None:
    options: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0, "stream": stream}
    answer = client.completions.create(**options, prompt=PROMPT, logprobs=0)
    choices = [choice for chunk in answer for choice in chunk.choices] if stream else answer.choices
    text = "".join(choice.text for choice in choices)
    told = [choice.logprobs for choice in choices if choice.logprobs]
    tokens = [token for each in told for token in each.tokens or []]
    values = [value for each in told for value in each.token_logprobs or []]
    offsets = [offset for each in told for offset in each.text_offset or []]
    assert "".join(tokens) == text
    assert len(tokens) == len(values) == 12
    assert all(value is not None and -30 < value <= 0 for value in values)
    assert all(text[offset:].startswith(token) for offset, token in zip(offsets, tokens, strict=True))
    chat = client.chat.completions.create(**options | {"stream": False}, messages=CHAT, logprobs=True)
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert "".join(entry.token for entry in content) == chat.choices[0].message.content


def test_response_format_is_enforced(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "green"]}, "count": {"type": "integer", "maximum": 9}},
        "required": ["color", "count"],
        "additionalProperties": False,
    }

    def ask(response_format: Any, **options: Any) -> Any:
        return client.chat.completions.create(
            model="tiny", messages=CHAT, response_format=response_format, max_tokens=96, **options
        )

    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    ended = 0
    for seed in range(4):
        choice = ask(wanted, seed=seed).choices[0]
        if choice.finish_reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(choice.message.content), schema)
    assert ended > 0
    streamed = ask(wanted, stream=True, temperature=0)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed).lstrip().startswith("{")
    free = ask({"type": "json_object"}, temperature=0)
    assert free.choices[0].message.content.lstrip()[:1] == "{"
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
    with pytest.raises(openai.BadRequestError, match="#/not cannot be enforced"):
        ask(bad)


BAD: list[tuple[bytes, str]] = [
    (b"", "Invalid JSON"),
    (b"{nope", "Invalid JSON"),
    (b"\xff\xfe", "Invalid JSON"),
    (b"[" * 5000, "Invalid JSON"),
    (b'{"model": "tiny", "prompt": "\\ud800"}', "Invalid JSON"),
    (b"[]", "should be an object"),
    (b"{}", "model: Field required"),
    (b'{"model": "tiny", "prompt": 3}', "prompt"),
    (b'{"model": "tiny", "prompt": ""}', "text_input is empty"),
    (b'{"model": "tiny", "prompt": []}', "at least 1 item"),
    (b'{"model": "tiny", "prompt": [1, 2]}', "valid string"),
    (b'{"model": "tiny", "prompt": "x", "max_tokens": 0}', "max_tokens: .*greater than or equal to 1"),
    (b'{"model": "tiny", "prompt": "x", "max_tokens": "5"}', "max_tokens: .*valid integer"),
    (b'{"model": "tiny", "prompt": "x", "max_tokens": 1e999}', "max_tokens"),
    (b'{"model": "tiny", "prompt": "x", "max_tokens": 5000}', "together more than the 1024"),
    (b'{"model": "tiny", "prompt": "x", "temperature": 9}', "temperature: .*less than or equal to 2"),
    (b'{"model": "tiny", "prompt": "x", "temperature": NaN}', "temperature"),
    (b'{"model": "tiny", "prompt": "x", "seed": 18446744073709551616}', "seed"),
    (b'{"model": "tiny", "prompt": "x", "stop": [""]}', "stop"),
    (b'{"model": "tiny", "prompt": "x", "n": 5}', "num_return_sequences is 5"),
    (b'{"model": "tiny", "prompt": "x", "logit_bias": {"1": 2}}', "logit_bias: not supported here"),
    (b'{"model": "tiny", "prompt": "x", "echo": true}', "echo: not supported here"),
]


@pytest.mark.parametrize(("body", "message"), BAD, ids=range(len(BAD)))
def test_bad_input_is_told_in_openai_s_form(place: Place, body: bytes, message: str) -> None:
    answer = httpx.post(f"{place.gateway.url}/completions", content=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert re.search(message, error["message"]), error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tools": [{"type": "function"}]}, "tools: not supported here"),
        ({"messages": []}, "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"response_format": {"type": "json_schema"}}, "json_schema is missing"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs: not supported here"),
        ({"stream": True, "max_tokens": 5000}, "together more than the 1024"),
    ],
)
def test_bad_chats_are_told_too(place: Place, changes: dict[str, Any], message: str) -> None:
    answer = httpx.post(
        f"{place.gateway.url}/chat/completions", json={"model": "tiny", "messages": CHAT} | changes
    )
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_paths_methods_and_sizes(place: Place) -> None:
    assert httpx.get(f"{place.root}/v2").json()["error"]["message"] == "GET /v2: Not Found"
    assert httpx.get(f"{place.gateway.url}/completions").status_code == 405
    long = httpx.post(f"{place.gateway.url}/completions", content=b" " * (2 << 20))
    assert (long.status_code, long.json()["error"]["code"]) == (413, "request_too_large")
    parts = httpx.post(f"{place.gateway.url}/completions", content=iter([b" " * (1 << 20)] * 2))
    assert parts.status_code == 413


def test_curl_streams_server_sent_events(place: Place) -> None:
    body = {"model": "tiny", "prompt": "import ", "max_tokens": 3, "stream": True, "unheard_of": 1}
    told = subprocess.run(
        ["curl", "-sN", f"{place.gateway.url}/completions", "-d", json.dumps(body)],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    *events, done, end = told.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


LONG: dict[str, Any] = {"model": "tiny", "prompt": "x = 1\n", "max_tokens": 1000, "seed": 1, "n": 4}


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_request(place: Place, stream: bool) -> None:
    url = f"{place.gateway.url}/completions"
    if stream:
        with httpx.stream("POST", url, json=LONG | {"stream": True}) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(url, json=LONG, timeout=0.5)
    # All four seats of the batch were taken, for 9 s on two busy cores.
    began = time.monotonic()
    answer = httpx.post(f"{place.gateway.url}/completions", json=LONG | {"max_tokens": 1}, timeout=30)
    assert answer.status_code == 200
    assert time.monotonic() - began < 4


def test_a_full_queue_is_429_with_retry_after(place: Place) -> None:
    def ask(_: int) -> httpx.Response:
        body = LONG | {"max_tokens": 200, "stop": "\n\n\n\n\n\n"}
        return httpx.post(f"{place.gateway.url}/completions", json=body, timeout=60)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert 0 < len(refused) < 4
    for answer in refused:
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "queue_full"


def test_keys_and_rates(place: Place, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nalpha\n\nbeta\n")
    settings = replace(place.settings, api_keys=str(tmp_path / "keys"), requests_per_minute=3)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1}

    with started(settings) as gateway:

        def ask(authorization: str | None) -> httpx.Response:
            headers = {"Authorization": authorization} if authorization else {}
            return httpx.post(f"{gateway.url}/completions", json=body, headers=headers)

        for wrong in (None, "alpha", "Bearer gamma", "Basic alpha", "Bearer alpha beta"):
            answer = ask(wrong)
            assert answer.status_code == 401, wrong
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["type"] == "authentication_error"
        assert httpx.get(f"{gateway.url}/models").status_code == 401
        assert httpx.get(f"{gateway.url.removesuffix('/v1')}/health").status_code == 200
        assert "access-control-allow-origin" not in ask("Bearer beta").headers
        with openai.OpenAI(base_url=gateway.url, api_key="alpha", max_retries=0) as client:
            for _ in range(3):
                client.completions.create(**body)
            with pytest.raises(openai.RateLimitError, match="more than 3 requests a minute") as caught:
                client.completions.create(**body)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 20
        assert ask("Bearer beta").status_code == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="a certificate is made with openssl")
def test_tls_and_cors_where_asked_for(place: Place, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
        check=True, capture_output=True,
    )  # fmt: skip
    settings = replace(
        place.settings, tls_cert=str(cert), tls_key=str(key), cors_origins=("https://a.example",)
    )
    with started(settings, tls_cert=cert, tls_key=key) as gateway:
        assert gateway.url.startswith("https://127.0.0.1:")
        with httpx.Client(verify=ssl.create_default_context(cafile=str(cert))) as client:
            for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
                answer = client.get(f"{gateway.url}/models", headers={"Origin": origin})
                assert answer.status_code == 200
                assert answer.headers.get("access-control-allow-origin") == allowed


def test_stopping_lets_answers_end(place: Place) -> None:
    gateway = started(place.settings)
    lines: list[str] = []
    begun = threading.Event()

    def listen() -> None:
        body = LONG | {"n": 1, "max_tokens": 100, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{gateway.url}/completions", json=body, timeout=30) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                begun.set()

    thread = threading.Thread(target=listen)
    thread.start()
    assert begun.wait(20)
    gateway.stop()
    thread.join(10)
    assert "data: [DONE]" in lines
    with pytest.raises(httpx.ConnectError):
        httpx.get(gateway.url)


def test_a_server_that_is_away_is_503(place: Place) -> None:
    with started(replace(place.settings, upstream="127.0.0.1:9")) as gateway:
        answer = httpx.post(f"{gateway.url}/completions", json={"model": "tiny", "prompt": "x"}, timeout=30)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert httpx.get(f"{gateway.url.removesuffix('/v1')}/health").status_code == 503
