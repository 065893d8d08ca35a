"""A load generator that costs little: one asyncio thread, answers kept as bytes until the clock stops.

The generator shares the machine with the server, so that what it costs would count as the server's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from deploy.wire import build_request, read_outputs

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


@dataclass
class Answer:
    """One answered request; times in seconds of `time.perf_counter`."""

    due: float  # when it was to be sent
    first: float = 0.0
    last: float = 0.0
    messages: list[bytes] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        """Seconds from when it was due to the first response."""
        return self.first - self.due

    @property
    def tokens(self) -> int:
        """Generated tokens, as the last response tells."""
        for message in reversed(self.messages):
            response = pb.ModelStreamInferResponse.FromString(message)
            if response.error_message:
                raise RuntimeError(response.error_message)
            outputs = read_outputs(response.infer_response)
            if "num_output_tokens" in outputs:
                return int(outputs["num_output_tokens"].sum())
        raise RuntimeError("the answer has no end")


class Load:
    """Sends requests to one model of one server. Use it inside one event loop."""

    def __init__(self, address: str, model: str = "ensemble") -> None:
        with grpc.insecure_channel(address) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            self._metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
        self._channel = grpc.aio.insecure_channel(address)
        self._call = self._channel.stream_stream(
            METHOD, request_serializer=pb.ModelInferRequest.SerializeToString
        )

    async def close(self) -> None:
        """Drop the connection."""
        await self._channel.close()

    def request(self, text: str, tokens: int) -> Any:
        """A request for exactly `tokens` tokens."""
        values = {"text_input": text, "max_tokens": tokens, "min_tokens": tokens}
        wishes = {"stream": True, "exclude_input_in_output": True, "return_num_output_tokens": True}
        return build_request(self._metadata, values, wishes)

    async def send(self, request: Any, due: float | None = None) -> Answer:
        """Send a request and wait for its whole answer."""
        answer = Answer(due or time.perf_counter())
        call = self._call()
        await call.write(request)
        await call.done_writing()
        async for message in call:
            answer.first = answer.first or time.perf_counter()
            answer.messages.append(message)
        answer.last = time.perf_counter()
        return answer


async def closed_loop(load: Load, concurrency: int, requests: Sequence[Any]) -> tuple[float, list[Answer]]:
    """Keep `concurrency` requests under way until all are answered; seconds and answers."""
    waiting = list(requests)[::-1]
    answers: list[Answer] = []

    async def one_after_another() -> None:
        while waiting:
            answers.append(await load.send(waiting.pop()))

    started = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(concurrency)))
    return time.perf_counter() - started, answers


async def open_loop(
    load: Load, requests: Sequence[Any], arrivals: Sequence[float]
) -> tuple[float, list[Answer]]:
    """Send each request at its arrival, in seconds from now; seconds until the last answer, and answers."""
    started = time.perf_counter()

    async def at(request: Any, arrival: float) -> Answer:
        await asyncio.sleep(max(0.0, started + arrival - time.perf_counter()))
        return await load.send(request, started + arrival)

    answers = await asyncio.gather(*(at(r, a) for r, a in zip(requests, arrivals, strict=True)))
    return time.perf_counter() - started, list(answers)
