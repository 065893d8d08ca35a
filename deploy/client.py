"""Talk to a model that Triton serves with the tensors of TensorRT-LLM's `inflight_batcher_llm`.

    with Client("127.0.0.1:8001") as client:
        for part in client.generate("def fibonacci(n):", max_tokens=64):
            print(part.text if isinstance(part, Chunk) else part)

It speaks gRPC through tritonclient's protocol classes, one call a request, so that requests of several
threads share a connection and closing an iterator cancels its request on the server. Triton does not pass a
cancellation on to the step of an ensemble that is running, so the engine behind one is also told to stop.
It works with upstream's repositories as with ours, decoupled or not.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from deploy.chat import render_chat
from deploy.wire import Array, build_request, build_stop_request, read_outputs
from toolchain.errors import LaunchError, RequestError, UsageError

__all__ = ["Chunk", "Client", "Summary", "parse_address", "render_chat"]

DEFAULT_PORT = 8001
_HANDSHAKE_S = 20.0
_STOP_S = 2.0  # to tell the server that an answer is no longer wanted
_ENGINE = "tensorrt_llm"
_START = "start it with `llmbuild serve ARTIFACT`; the gRPC port is the one that it prints, 8001 by default"


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer.

    Attributes:
        text: what comes next.
        sequence: which of the `num_return_sequences` answers it belongs to.
        log_probs: of its tokens, when they were asked for.
    """

    text: str
    sequence: int = 0
    log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What is known at the end of an answer.

    Attributes:
        tokens: how many were generated; the number of chunks when the server does not tell.
        ttft_s: seconds from sending the request to the first response.
        duration_s: seconds from sending the request to the last response.
        tokens_per_s: of the tokens after the first response; of all when there is only one response.
        finish_reason: `stop` or `length`, when the server tells; of the last sequence to end.
    """

    tokens: int
    ttft_s: float
    duration_s: float
    tokens_per_s: float
    finish_reason: str | None = None

    def __str__(self) -> str:
        ended = f", finished by {self.finish_reason}" if self.finish_reason else ""
        return (
            f"{self.tokens} tokens, first after {self.ttft_s * 1000:.0f} ms, "
            f"{self.tokens_per_s:.1f} tokens/s{ended}"
        )


class Client:
    """A connection to one server; safe to share among threads."""

    def __init__(self, url: str) -> None:
        """`url` is host:port or grpc://host:port; nothing is sent yet."""
        self.address = parse_address(url)
        self._channel = open_channel(self.address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._models: dict[str, pb.ModelMetadataResponse] = {}
        self._open: dict[Any, tuple[str, str]] = {}  # call under way -> its model, the request's id

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection; requests in flight are cancelled."""
        for call in list(self._open):
            self._abandon(call)
        self._channel.close()

    def is_ready(self, *models: str) -> bool:
        """Whether the server answers and each of `models` is ready; False when it is away."""
        try:
            if not self._stub.ServerReady(pb.ServerReadyRequest(), timeout=_HANDSHAKE_S).ready:
                return False
            requests = (pb.ModelReadyRequest(name=model) for model in models)
            return all(self._stub.ModelReady(request, timeout=_HANDSHAKE_S).ready for request in requests)
        except grpc.RpcError:
            return False

    def generate(
        self,
        prompt: str | bytes,
        *,
        max_tokens: int,
        stream: bool = True,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        seed: int | None = None,
        stop_words: Sequence[str] | None = None,
        bad_words: Sequence[str] | None = None,
        min_tokens: int | None = None,
        num_return_sequences: int | None = None,
        return_log_probs: bool | None = None,
        end_id: int | None = None,
        guide: tuple[str, str] | None = None,
        request_id: str = "",
        model: str = "ensemble",
        timeout_s: float | None = None,
    ) -> Iterator[Chunk | Summary]:
        """Ask `model` to continue `prompt`: chunks as they come, at the end one `Summary`.

        What is None is not sent, so that the server's own default holds. The request is sent when the first
        element is asked for; closing the iterator, or the client, cancels it and frees what it holds.

        Args:
            prompt: text, or UTF-8 bytes.
            stream: chunks as they are generated; False gives each answer whole, as one chunk.
            temperature: 0 is greedy. Above 0 without `top_k` and `top_p`, a `top_p` of 1 is sent with it (to
                models that take one): the engines sample only when one of the two asks them to.
            top_k: sample among this many likeliest tokens; 1 is greedy.
            top_p: sample among the likeliest tokens of this mass. Without all three: greedy.
            stop_words: each is taken literally; the answer ends before the first that appears.
            guide: what the answer must match: ("json", "") for any JSON object, or "json_schema", "regex" or
                "ebnf_grammar" and its text.
            request_id: the server's log and traces name the request by it. It must be the only one with this
                id, because a request is stopped by it; empty makes one up.
            timeout_s: the longest that the whole answer may take; None waits as long as the server lives.

        Raises:
            UsageError: a value that cannot be sent, such as text that is no UTF-8.
            RequestError: the server answered with an error, or not in time.
            LaunchError: the server cannot be reached, or went away.
        """
        given: dict[str, Any] = {
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "seed": seed,
            "stop_words": stop_words or None,
            "bad_words": bad_words or None,
            "min_tokens": min_tokens,
            "num_return_sequences": num_return_sequences,
            "return_log_probs": return_log_probs,
            "end_id": end_id,
            "guided_decoding_guide_type": guide[0] if guide else None,
            "guided_decoding_guide": (guide[1] or None) if guide else None,
        }
        values = {"text_input": prompt, "max_tokens": max_tokens}
        values |= {name: value for name, value in given.items() if value is not None}
        # Sent only to models that take them: they say how to answer, not what.
        wishes: dict[str, Any] = {
            "stream": stream,
            "exclude_input_in_output": True,
            "return_num_output_tokens": True,
        }
        if temperature and top_k is None and top_p is None:
            wishes["top_p"] = 1.0
        metadata = self._metadata(model)
        request = build_request(metadata, values, wishes, request_id or uuid.uuid4().hex)
        return self._answers(request, timeout_s)

    def complete(self, prompt: str | bytes, *, max_tokens: int, **options: Any) -> str:
        """The whole answer to `prompt` as one text; `options` are those of `generate`.

        With several return sequences it is the first.
        """
        options.setdefault("stream", False)
        parts = self.generate(prompt, max_tokens=max_tokens, **options)
        return "".join(part.text for part in parts if isinstance(part, Chunk) and part.sequence == 0)

    def _metadata(self, model: str) -> pb.ModelMetadataResponse:
        if model not in self._models:
            try:
                request = pb.ModelMetadataRequest(name=model)
                self._models[model] = self._stub.ModelMetadata(request, timeout=_HANDSHAKE_S)
            except grpc.RpcError as error:
                raise self._translated(error, begun=False) from error
        return self._models[model]

    def _answers(self, request: pb.ModelInferRequest, timeout_s: float | None) -> Iterator[Chunk | Summary]:
        started = time.perf_counter()
        first = last = started
        chunks, first_tokens, begun = 0, 0, False
        counts: dict[int, int] = {}
        reason: str | None = None
        failed: RequestError | None = None
        call = self._stub.ModelStreamInfer(iter([request]), timeout=timeout_s)
        self._open[call] = request.model_name, request.id
        try:
            # Read to the server's own end of the stream: Triton never releases a request of an ensemble that
            # is cancelled just when it fails, and then cannot stop before its exit timeout.
            for message in call:
                response = message.infer_response
                is_final = response.parameters["triton_final_response"].bool_param
                if message.error_message:
                    failed = RequestError(message.error_message, where=request.model_name)
                    if is_final:
                        continue
                    raise failed
                outputs = read_outputs(response)
                if "text_output" in outputs:
                    last = time.perf_counter()
                    found = _chunks(outputs)
                    chunks += len(found)
                    if not begun:
                        # The first token is sent at once, whatever the server's stream_interval.
                        begun, first, first_tokens = True, last, len(found)
                    if "num_output_tokens" in outputs:
                        counts[found[0].sequence] = int(outputs["num_output_tokens"].sum())
                    if "finish_reason" in outputs:
                        reason = _text(outputs["finish_reason"].flat[-1]) or reason
                    yield from found
            self._open.pop(call, None)
        except grpc.RpcError as error:
            raise self._translated(error, begun=True, timeout_s=timeout_s) from error
        finally:
            self._abandon(call)
        if failed:
            raise failed
        tokens = sum(counts.values()) or chunks
        yield _summary(tokens, first_tokens, (started, first, last), reason)

    def _abandon(self, call: Any) -> None:
        """Cancel a call that has not ended, and stop the engine behind an ensemble. Never raises."""
        if call not in self._open:
            return
        model, request_id = self._open.pop(call)
        call.cancel()
        # Whoever leaves early does not want to hear of a server that is gone, or a channel that is closed.
        with contextlib.suppress(grpc.RpcError, ValueError):
            config = self._stub.ModelConfig(pb.ModelConfigRequest(name=model), timeout=_STOP_S).config
            if any(step.model_name == _ENGINE for step in config.ensemble_scheduling.step):
                stop = build_stop_request(_ENGINE, request_id)
                for _ in self._stub.ModelStreamInfer(iter([stop]), timeout=_STOP_S):
                    pass

    def _translated(
        self, error: Any, *, begun: bool, timeout_s: float | None = None
    ) -> RequestError | LaunchError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and begun:
            return RequestError(f"no complete answer within {timeout_s:g} s", where=self.address)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            if begun:
                return LaunchError(
                    "the server went away before its answer was complete",
                    where=self.address,
                    why=details,
                    fix="look at the server's log",
                )
            return LaunchError("no server answers", where=self.address, why=details, fix=_START)
        return RequestError(details or str(code), where=self.address)


def open_channel(address: str) -> Any:
    """A gRPC channel to host:port, for messages of any size; the environment's proxy is not for loopback."""
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    if address.startswith(("127.", "localhost:", "[::1]")):
        options.append(("grpc.enable_http_proxy", 0))
    return grpc.insecure_channel(address, options=options)


def parse_address(url: str) -> str:
    """`host:port` of a gRPC endpoint, from that, from `grpc://host:port`, or from a host alone.

    Raises:
        UsageError: it is an HTTP URL, or no address.
    """
    scheme, separator, rest = url.partition("://")
    if separator and scheme != "grpc":
        raise UsageError(
            f"{url} is no gRPC address",
            why="llmbuild talks gRPC, which is host:port without http://",
            fix="give the server's gRPC port, for example 127.0.0.1:8001 beside an HTTP port of 8000",
        )
    address = (rest if separator else url).rstrip("/")
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(DEFAULT_PORT)
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{url!r} is no address", fix="give host:port, for example 127.0.0.1:8001")
    return f"{host}:{port}"


def _chunks(outputs: Mapping[str, Array]) -> list[Chunk]:
    """One chunk for each text of a response."""
    texts = outputs["text_output"].reshape(-1)
    first = int(outputs["sequence_index"].flat[0]) if outputs.get("sequence_index", np.empty(0)).size else 0
    log_probs = outputs.get("output_log_probs", np.empty(0)).reshape(len(texts) or 1, -1)
    return [
        Chunk(_text(text), first + offset, tuple(log_probs[offset].tolist()))
        for offset, text in enumerate(texts)
    ]


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")


def _summary(
    tokens: int, first_tokens: int, times: tuple[float, float, float], reason: str | None
) -> Summary:
    started, first, last = times
    if last > first:
        rate = (tokens - first_tokens) / (last - first)
    else:
        rate = tokens / (last - started) if last > started else 0.0
    return Summary(tokens, first - started, last - started, rate, reason)
