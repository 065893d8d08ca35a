"""Put a load on a target and note when what came back.

One thread sends and receives. A closed loop keeps a number of requests under way; an open loop sends each
request at its time, however many are under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from deploy.bench.orders import Order
from deploy.bench.target import Event, Target

_TICK_S = 0.5


@dataclass
class Record:
    """What became of one request; times in seconds since its load began.

    Args:
        asked_tokens: how long the answer was to be.
        sent_s: when it was sent.
        late_s: how long after the time at which it was to be sent.
        input_tokens: of the prompt, if known.
        output_tokens: of the answer: what the server says, or else the number of responses.
        is_counted: whether the server said it.
        responses_s: when each response with text came.
        error: the message it failed with.
        is_done: whether it ended, one way or the other.
    """

    asked_tokens: int
    sent_s: float
    late_s: float = 0.0
    input_tokens: int | None = None
    output_tokens: int = 0
    is_counted: bool = False
    responses_s: list[float] = field(default_factory=list)
    error: str | None = None
    is_done: bool = False

    @property
    def is_answered(self) -> bool:
        """Whether it ended well, with text."""
        return self.is_done and self.error is None

    @property
    def ttft_s(self) -> float:
        """From sending to the first response."""
        return self.responses_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        """From sending to the last response."""
        return self.responses_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Seconds a token after the first; None for answers of one token."""
        if self.output_tokens < 2:
            return None
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """The gaps between the responses."""
        return [after - before for before, after in zip(self.responses_s, self.responses_s[1:], strict=False)]


def put_load(
    target: Target,
    orders: Iterable[Order],
    records: list[Record],
    *,
    concurrency: int | None = None,
    duration_s: float | None = None,
    timeout_s: float = 300.0,
    on_progress: Callable[[], None] | None = None,
) -> None:
    """Send `orders` until there are no more and all are answered.

    Args:
        target: the server.
        orders: in the order in which they are sent; read as they are needed.
        records: one a request is appended, so that an interruption loses nothing.
        concurrency: so many at a time; None sends each at its arrival.
        duration_s: no request is sent later than this.
        timeout_s: a request of which nothing is heard for so long has failed.
        on_progress: called about twice a second.

    Raises:
        LaunchError: the server went away.
    """
    loop = _Loop(target, records, timeout_s)
    waiting = iter(orders)
    upcoming = next(waiting, None)
    reported = 0.0
    try:
        while upcoming is not None or loop.in_flight:
            now = loop.now()
            if duration_s is not None and now >= duration_s:
                upcoming = None
            pause = _TICK_S
            while upcoming is not None:
                if concurrency is not None and len(loop.in_flight) >= concurrency:
                    break
                if concurrency is None:
                    pause = min(_TICK_S, (upcoming.arrival_s or 0.0) - loop.now())
                    if pause > 0:
                        break
                loop.send(upcoming, upcoming.arrival_s if concurrency is None else None)
                upcoming = next(waiting, None)
            if upcoming is None and not loop.in_flight:
                break
            loop.receive(pause)
            if on_progress and loop.now() - reported > _TICK_S:
                reported = loop.now()
                on_progress()
    finally:
        target.drop(list(loop.in_flight))


class _Loop:
    """The requests under way."""

    def __init__(self, target: Target, records: list[Record], timeout_s: float) -> None:
        self._target, self._records, self._timeout_s = target, records, timeout_s
        self._started = time.perf_counter()
        self._checked = 0.0
        self.in_flight: dict[int, tuple[Record, float]] = {}  # key -> its record, when it was last heard of

    def now(self) -> float:
        return time.perf_counter() - self._started

    def send(self, order: Order, due_s: float | None) -> None:
        sent = self.now()
        late = sent - due_s if due_s is not None else 0.0
        record = Record(order.output_tokens, sent, late, order.input_tokens)
        self._records.append(record)
        self.in_flight[self._target.send(order)] = record, sent

    def receive(self, timeout_s: float) -> None:
        event = self._target.receive(timeout_s)
        if event is not None and event.key in self.in_flight:
            self._note(event)
        if self.now() - self._checked > _TICK_S:
            self._checked = self.now()
            self._give_up_on_silent()

    def _note(self, event: Event) -> None:
        record, _ = self.in_flight[event.key]
        at = event.at - self._started
        self.in_flight[event.key] = record, at
        if event.has_text:
            record.responses_s.append(at)
        record.input_tokens = event.input_tokens or record.input_tokens
        if event.output_tokens is not None:
            record.output_tokens, record.is_counted = event.output_tokens, True
        if event.is_final:
            self._end(event.key, event.error)

    def _end(self, key: int, error: str | None) -> None:
        record, _ = self.in_flight.pop(key)
        record.is_done = True
        record.error = error
        if error is None and not record.responses_s:
            record.error = "the answer was empty"
        if not record.is_counted:
            record.output_tokens = len(record.responses_s)

    def _give_up_on_silent(self) -> None:
        silent = [key for key, (_, heard) in self.in_flight.items() if self.now() - heard > self._timeout_s]
        self._target.drop(silent)
        for key in silent:
            self._end(key, f"nothing was heard for {self._timeout_s:g} s")
