"""Any server that speaks OpenAI's protocol: vLLM, TGI, SGLang, our own gateway.

Streaming completions over http.client, a thread a request under way, connections kept. Only fields of the
protocol are sent, so an answer may end before the length asked for; `extra` brings what a server knows
besides, such as `ignore_eos` of vLLM.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import queue
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from deploy.bench.orders import Order
from deploy.bench.target import Event
from toolchain.errors import LaunchError, UsageError

_CONNECT_S = 20.0


class OpenAiTarget:
    """One model behind `URL/completions` or, with `is_chat`, `URL/chat/completions`."""

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        is_chat: bool = False,
        token: str | None = None,
        extra: Mapping[str, Any] | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        """Ask the server for its models; None takes the first.

        Args:
            url: of the API, for example http://127.0.0.1:9000/v1.
            token: sent as bearer token.
            extra: further fields of every request.
            timeout_s: the longest silence within an answer.

        Raises:
            UsageError: no HTTP URL, or no such model.
            LaunchError: no server answers there, or not as OpenAI's.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise UsageError(f"{url!r} is no HTTP URL", fix="give one like http://127.0.0.1:9000/v1")
        self.address = url.rstrip("/")
        self._is_secure, self._host, self._port = parts.scheme == "https", parts.hostname, port
        self._path = parts.path.rstrip("/")
        self._is_chat, self._extra, self._timeout_s = is_chat, dict(extra or {}), timeout_s
        self._headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._idle: queue.LifoQueue[http.client.HTTPConnection] = queue.LifoQueue()
        self._used: dict[int, http.client.HTTPConnection] = {}
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._keys = itertools.count()
        self.server = "unknown"
        self.model = self._find_model(model)

    def send(self, order: Order) -> int:
        """See `Target`."""
        key = next(self._keys)
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": order.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._is_chat:
            body["messages"] = [{"role": "user", "content": order.prompt}]
        else:
            body["prompt"] = order.prompt
        sent = json.dumps(body | self._extra).encode()
        threading.Thread(target=self._answer, args=(key, sent), daemon=True).start()
        return key

    def receive(self, timeout_s: float) -> Event | None:
        """See `Target`; a server that goes away fails its requests, one by one."""
        try:
            return self._inbox.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None

    def drop(self, keys: list[int]) -> None:
        """Close their connections, which is how OpenAI's protocol cancels."""
        for key in keys:
            connection = self._used.pop(key, None)
            if connection is not None and connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(2)

    def close(self) -> None:
        """See `Target`."""
        self.drop(list(self._used))
        while not self._idle.empty():
            self._idle.get().close()

    def _answer(self, key: int, body: bytes) -> None:
        try:
            response, connection = self._post(key, body)
            if response.status != 200:
                raise _BadAnswerError(f"HTTP {response.status}: {_message(response.read())}")
            for event in _events(response):
                self._inbox.put(_event(key, event))
            response.read()  # to the end, so that the connection can be used again
            self._used.pop(key, None)
            self._idle.put(connection)
            self._inbox.put(Event(key, time.perf_counter(), is_final=True))
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if broken := self._used.pop(key, None):
                broken.close()
            text = str(error) or type(error).__name__
            self._inbox.put(Event(key, time.perf_counter(), is_final=True, error=text))

    def _post(self, key: int, body: bytes) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
        """Send on a kept connection if there is one; one that was closed meanwhile is replaced."""
        path = self._path + ("/chat/completions" if self._is_chat else "/completions")
        try:
            connection = self._idle.get_nowait()
        except queue.Empty:
            connection = self._connect()
        else:
            try:
                self._used[key] = connection
                connection.request("POST", path, body, self._headers)
                return connection.getresponse(), connection
            except (http.client.RemoteDisconnected, ConnectionError):
                connection.close()
                connection = self._connect()
        self._used[key] = connection
        connection.request("POST", path, body, self._headers)
        return connection.getresponse(), connection

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._is_secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout_s)

    def _find_model(self, wanted: str | None) -> str:
        connection = self._connect()
        connection.timeout = _CONNECT_S
        try:
            connection.request("GET", f"{self._path}/models", headers=self._headers)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise LaunchError(
                "no server answers", where=self.address, why=str(error), fix="check the URL, and that it runs"
            ) from error
        finally:
            connection.close()
        self.server = response.headers.get("Server") or "unknown"
        if response.status != 200:
            raise LaunchError(
                f"the server does not tell its models: HTTP {response.status}",
                where=f"{self.address}/models",
                why=_message(body),
                fix="the URL of OpenAI's protocol mostly ends in /v1; --api-key-env names a token's variable",
            )
        try:
            names = [model["id"] for model in json.loads(body)["data"]]
        except (ValueError, KeyError, TypeError) as error:
            raise LaunchError("the server does not answer as OpenAI's", where=self.address) from error
        if wanted is None and names:
            return str(names[0])
        if wanted is None or wanted not in names:
            known = ", ".join(map(str, names)) or "none"
            raise UsageError(f"there is no model {wanted!r}", where=self.address, fix=f"it has {known}")
        return wanted


class _BadAnswerError(ValueError):
    """The server answered with an error."""


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The JSON objects of a stream of server-sent events, up to [DONE].

    A connection that is cut looks to http.client like an end.
    """
    for line in response:
        if line.startswith(b"data:"):
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield json.loads(data)
    raise _BadAnswerError("the answer broke off")


def _event(key: int, said: dict[str, Any]) -> Event:
    at = time.perf_counter()
    if said.get("error"):
        raise _BadAnswerError(_message(json.dumps(said).encode()))
    choices, usage = said.get("choices") or [], said.get("usage") or {}
    texts = [choice.get("text") or (choice.get("delta") or {}).get("content") for choice in choices]
    return Event(key, at, any(texts), usage.get("prompt_tokens"), usage.get("completion_tokens"))


def _message(body: bytes) -> str:
    """The message of an error in OpenAI's form, or the beginning of what came instead."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace").strip() or "nothing more was said"
