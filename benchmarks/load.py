"""A load generator that costs little: all requests on one gRPC stream, read by one thread.

It shares the machine with the server, so that what it costs would count as the server's. One stream for many
requests, told apart by their ids, is also what upstream's own client uses.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from deploy.wire import build_request, read_outputs


@dataclass
class Answer:
    """One answered request; times in seconds of `time.perf_counter`."""

    due: float  # when it was to be sent
    first: float = 0.0
    last: float = 0.0
    tokens: int = 0

    @property
    def ttft(self) -> float:
        """Seconds from when it was due to the first response."""
        return self.first - self.due


class Load:
    """Sends requests to one model of one server; for one thread."""

    def __init__(self, address: str, model: str = "ensemble") -> None:
        self._channel = grpc.insecure_channel(address)
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name=model))
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._messages: Iterator[Any] = stub.ModelStreamInfer(iter(self._outbox.get, None))

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._outbox.put(None)
        self._channel.close()

    def request(self, text: str, tokens: int) -> Any:
        """A request for exactly `tokens` tokens."""
        values = {"text_input": text, "max_tokens": tokens, "min_tokens": tokens}
        wishes = {"stream": True, "exclude_input_in_output": True, "return_num_output_tokens": True}
        return build_request(self._metadata, values, wishes)

    def closed_loop(self, concurrency: int, requests: Sequence[Any]) -> tuple[float, list[Answer]]:
        """Keep `concurrency` requests under way until all are answered; seconds and answers."""
        answers = [Answer(0.0) for _ in requests]
        waiting = list(range(len(requests)))[::-1]

        def send_next() -> None:
            if waiting:
                number = waiting.pop()
                answers[number].due = time.perf_counter()
                self._send(requests[number], number)

        started = time.perf_counter()
        for _ in range(concurrency):
            send_next()
        for _ in self._ends(answers):
            send_next()
        return time.perf_counter() - started, answers

    def open_loop(self, requests: Sequence[Any], arrivals: Sequence[float]) -> tuple[float, list[Answer]]:
        """Send each request at its arrival, in seconds from now; seconds until the last end, and answers."""
        started = time.perf_counter()
        answers = [Answer(started + arrival) for arrival in arrivals]

        def send() -> None:
            for number in sorted(range(len(requests)), key=lambda number: arrivals[number]):
                time.sleep(max(0.0, answers[number].due - time.perf_counter()))
                self._send(requests[number], number)

        sender = threading.Thread(target=send)
        sender.start()
        for _ in self._ends(answers):
            pass
        sender.join()
        return time.perf_counter() - started, answers

    def _send(self, request: Any, number: int) -> None:
        request.id = str(number)
        self._outbox.put(request)

    def _ends(self, answers: list[Answer]) -> Iterator[Answer]:
        """Read until every answer has ended; yields each one at its end."""
        ended = 0
        while ended < len(answers):
            message = next(self._messages)
            if message.error_message:
                raise RuntimeError(message.error_message)
            response = message.infer_response
            answer = answers[int(response.id)]
            answer.last = time.perf_counter()
            answer.first = answer.first or answer.last
            if any(output.name == "num_output_tokens" for output in response.outputs):
                answer.tokens = int(read_outputs(response)["num_output_tokens"].sum())
                ended += 1
                yield answer
