"""The gateway's connection to Triton: one asynchronous gRPC call a request, which ends with it.

Works with each flavour's `ensemble`, decoupled or not. Triton does not pass a cancellation on to the step of
an ensemble that is running, so the engine behind one is told to stop as well (as `deploy.client` does).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
import grpc.aio  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from deploy.gateway.errors import ApiError, from_server, unavailable
from deploy.wire import Array, build_request, build_stop_request, read_outputs
from toolchain.errors import UsageError

MODEL = "ensemble"
_ENGINE = "tensorrt_llm"
_HANDSHAKE_S = 5.0
_STOP_S = 5.0  # to tell the server that an answer is no longer wanted


@dataclass(frozen=True)
class Piece:
    """What one response says of one of a request's answers.

    Attributes:
        sequence: which of the answers.
        text: what comes next.
        log_probs: of its tokens, when they were asked for.
        tokens: generated so far in this answer, or in all of a response's answers together (with the first of
            them); None where the server does not tell.
        finish_reason: `stop` or `length`, with the last piece, where the server tells.
    """

    sequence: int
    text: str
    log_probs: tuple[float, ...] = ()
    tokens: int | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class _Served:
    """What is known of the model, learnt once."""

    metadata: Any
    decoupled: bool
    stops_engine: bool  # an ensemble, whose engine must be told to stop


class Upstream:
    """A Triton server, by the `host:port` of its gRPC port. Belongs to one event loop."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if address.startswith(("127.", "localhost:", "[::1]")):
            options.append(("grpc.enable_http_proxy", 0))
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._served: _Served | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Wait until what was abandoned has been stopped, and drop the connection."""
        await asyncio.gather(*self._stopping)
        await self._channel.close()

    async def is_ready(self) -> bool:
        """Whether the server would take a request."""
        try:
            request = pb.ModelReadyRequest(name=MODEL)
            return bool((await self._stub.ModelReady(request, timeout=_HANDSHAKE_S)).ready)
        except grpc.RpcError:
            return False

    async def generate(
        self, values: Mapping[str, Any], request_id: str, *, stream: bool
    ) -> AsyncGenerator[Piece, None]:
        """Ask the model; `values` are inputs of `ensemble` by name.

        Closing the iterator, or cancelling the task that waits for it, ends the request on the server. The
        pieces of a server that cannot stream are whole answers.

        Raises:
            ApiError: the server refused the request, failed, or is away.
        """
        served = await self._model()
        wishes = {
            "stream": stream and served.decoupled,
            "exclude_input_in_output": True,
            "return_num_output_tokens": True,
        }
        try:
            request = build_request(served.metadata, values, wishes, request_id)
        except UsageError as error:
            raise ApiError(400, f"{error.what}: {error.why}" if error.why else error.what) from error
        call = self._stub.ModelStreamInfer(iter([request]))
        begun = ended = False
        failed: str | None = None
        try:
            async for message in call:  # to the end of the stream, also after an error: see deploy.client
                response = message.infer_response
                if message.error_message:
                    failed = message.error_message
                    if response.parameters["triton_final_response"].bool_param:
                        continue
                    break
                for piece in _pieces(read_outputs(response)):
                    begun = True
                    yield piece
            else:
                ended = True
            if failed is not None:
                raise from_server(failed, begun=begun)
        except grpc.RpcError as error:
            ended = True
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise unavailable("the model's server is away") from error
            raise from_server(error.details() or str(error.code()), begun=begun) from error
        finally:
            if not ended:
                call.cancel()
                if served.stops_engine:
                    # Not awaited here, where the task may have been cancelled.
                    task = asyncio.create_task(self._stop(request_id))
                    self._stopping.add(task)
                    task.add_done_callback(self._stopping.discard)

    async def _stop(self, request_id: str) -> None:
        with contextlib.suppress(grpc.RpcError):
            request = build_stop_request(_ENGINE, request_id)
            async for _ in self._stub.ModelStreamInfer(iter([request]), timeout=_STOP_S):
                pass

    async def _model(self) -> _Served:
        if self._served is None:
            try:
                metadata = await self._stub.ModelMetadata(
                    pb.ModelMetadataRequest(name=MODEL), timeout=_HANDSHAKE_S
                )
                answer = await self._stub.ModelConfig(pb.ModelConfigRequest(name=MODEL), timeout=_HANDSHAKE_S)
            except grpc.RpcError as error:
                raise unavailable(f"the model's server does not answer: {error.details()}") from error
            config = answer.config
            self._served = _Served(
                metadata,
                decoupled=config.model_transaction_policy.decoupled,
                stops_engine=any(step.model_name == _ENGINE for step in config.ensemble_scheduling.step),
            )
        return self._served


def _pieces(outputs: Mapping[str, Array]) -> Iterator[Piece]:
    """One piece for each text of a response; none for a response that only says that it is the last."""
    if "text_output" not in outputs:
        return
    texts = outputs["text_output"].reshape(-1)
    first = int(_flat(outputs, "sequence_index", 0)[0])
    reasons = _flat(outputs, "finish_reason", b"")
    log_probs = outputs.get("output_log_probs", np.empty(0)).reshape(len(texts) or 1, -1)
    tokens = int(outputs["num_output_tokens"].sum()) if "num_output_tokens" in outputs else None
    for offset, text in enumerate(texts):
        reason = reasons[offset] if offset < len(reasons) else b""
        yield Piece(
            sequence=first + offset,
            text=text.decode(errors="replace"),
            log_probs=tuple(log_probs[offset].tolist()),
            tokens=tokens if offset == 0 else 0 if tokens is not None else None,
            finish_reason=reason.decode() or None,
        )


def _flat(outputs: Mapping[str, Array], name: str, default: Any) -> Array:
    found = outputs.get(name, np.empty(0)).reshape(-1)
    return found if found.size else np.array([default], dtype=object)
