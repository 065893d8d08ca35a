"""Triton over gRPC: all requests on one stream, which costs little beside a server on the same machine.

Requests are told apart by their ids, as upstream's own client does it.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from deploy.bench.orders import Order
from deploy.bench.target import Event
from deploy.client import Client, open_channel, parse_address
from deploy.wire import build_request, build_stop_request, read_outputs
from toolchain.errors import LaunchError

_ENGINE = "tensorrt_llm"
_HANDSHAKE_S = 20.0
_CLOSE_S = 2.0


class TritonTarget:
    """One model of one server. Answers have exactly the tokens asked for, if it takes `min_tokens`."""

    def __init__(self, address: str, model: str = "ensemble", extra: Mapping[str, Any] | None = None) -> None:
        """`extra` are further input tensors of every request, by name.

        Raises:
            UsageError: no address.
            LaunchError: no server answers there, or the model is not ready.
        """
        self.address = parse_address(address)
        self.model = model
        with Client(address) as client:
            if not client.is_ready(model):
                raise LaunchError(
                    f"no server answers with a model {model!r} that is ready",
                    where=self.address,
                    fix="`llmbuild serve ARTIFACT` starts one; give its gRPC port, and --model if need be",
                )
        self._extra = dict(extra or {})
        self._channel = open_channel(self.address)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self.server = _server_name(stub)
        self._metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=model), timeout=_HANDSHAKE_S)
        self._run = uuid.uuid4().hex[:12]
        self._keys = itertools.count()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inbox: queue.SimpleQueue[tuple[float, Any]] = queue.SimpleQueue()
        self._messages: Iterator[Any] = stub.ModelStreamInfer(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, order: Order) -> int:
        """Raises UsageError where the model lacks an input of the request."""
        key = next(self._keys)
        values = {"text_input": order.prompt, "max_tokens": order.output_tokens, **self._extra}
        wishes = {
            "min_tokens": order.output_tokens,
            "stream": True,
            "exclude_input_in_output": True,
            "return_num_output_tokens": True,
        }
        wishes = {name: value for name, value in wishes.items() if name not in values}
        self._outbox.put(build_request(self._metadata, values, wishes, f"{self._run}-{key}"))
        return key

    def receive(self, timeout_s: float) -> Event | None:
        """See `Target`."""
        try:
            at, message = self._inbox.get(timeout=max(timeout_s, 0.0))
        except queue.Empty:
            return None
        if isinstance(message, grpc.RpcError):
            raise LaunchError("the server went away", where=self.address, why=message.details())
        response = message.infer_response
        run, _, number = response.id.rpartition("-")
        if run != self._run:
            return None  # of a stop request
        if message.error_message:
            return Event(int(number), at, is_final=True, error=message.error_message)
        outputs = read_outputs(response)
        tokens = outputs.get("num_output_tokens")
        return Event(
            int(number),
            at,
            has_text=any(outputs["text_output"].flat) if "text_output" in outputs else False,
            output_tokens=None if tokens is None else int(tokens.sum()),
            is_final=response.parameters["triton_final_response"].bool_param,
        )

    def drop(self, keys: list[int]) -> None:
        """Stop them in the engine: Triton does not pass a cancellation on to the step of an ensemble."""
        for key in keys:
            self._outbox.put(build_stop_request(_ENGINE, f"{self._run}-{key}"))

    def close(self) -> None:
        """See `Target`."""
        self._outbox.put(None)
        self._reader.join(_CLOSE_S)
        self._channel.close()

    def _read(self) -> None:
        """Note when each message came; what it says is read by the thread that sends."""
        try:
            for message in self._messages:
                self._inbox.put((time.perf_counter(), message))
        except grpc.RpcError as error:
            self._inbox.put((time.perf_counter(), error))


def _server_name(stub: Any) -> str:
    with contextlib.suppress(grpc.RpcError):
        said = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=_HANDSHAKE_S)
        return f"{said.name} {said.version}"
    return "unknown"
