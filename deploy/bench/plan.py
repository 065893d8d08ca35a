"""A benchmark: the loads that are put on each target, the warm-up before them, and their result."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deploy.bench.figures import summarize
from deploy.bench.lengths import Lengths
from deploy.bench.load import Record, put_load
from deploy.bench.orders import Order, Prompts, arriving, make_orders, poisson_arrivals
from deploy.bench.target import Target

SCHEMA = 1
_REQUESTS_A_STREAM = 10


@dataclass(frozen=True)
class Level:
    """One load: a concurrency, a rate of requests a second, or a recorded trace at its own times.

    Exactly one of the three is given; a trace may go with a concurrency, which then takes its times' place.
    """

    concurrency: int | None = None
    rate: float | None = None
    trace: tuple[Order, ...] | None = None

    def __str__(self) -> str:
        if self.concurrency is not None:
            return f"concurrency {self.concurrency}"
        return f"{self.rate:g} requests/s" if self.rate is not None else "trace"


@dataclass(frozen=True)
class Plan:
    """What is measured on each target, the same on all of them.

    Args:
        levels: one after the other.
        prompts: makes the prompts; None where a trace brings them.
        inputs, outputs: lengths in tokens.
        requests: a level; None: 10 for each concurrent stream, or 50 at a rate, unless a duration is given.
        duration_s: nothing is sent later in a level.
        warmup: requests before the levels of a target, in none of the figures.
        seed: of lengths, prompts and arrivals.
        timeout_s: of silence, after which a request has failed.
        limits: of a good request.
    """

    levels: tuple[Level, ...]
    prompts: Prompts | None
    inputs: Lengths
    outputs: Lengths
    requests: int | None = None
    duration_s: float | None = None
    warmup: int = 4
    seed: int = 0
    timeout_s: float = 300.0
    limits: Mapping[str, float] = field(default_factory=dict)

    def orders(self, number: int) -> Iterable[Order]:
        """The orders of a level: the same whenever it is asked."""
        level, seed = self.levels[number], self.seed + 1 + number
        if level.trace is not None:
            return level.trace if self.requests is None else level.trace[: self.requests]
        assert self.prompts is not None
        orders = make_orders(self.prompts, self.inputs, self.outputs, seed)
        count = self.requests
        if level.rate is not None:
            # Listed before the load begins: making a prompt must not delay the requests.
            arrivals: Iterator[float] = poisson_arrivals(level.rate, seed)
            if self.duration_s is not None:
                arrivals = itertools.takewhile(lambda at: at < (self.duration_s or 0.0), arrivals)
            elif count is None:
                count = 5 * _REQUESTS_A_STREAM
            return list(itertools.islice(arriving(orders, arrivals), count))
        if count is None and self.duration_s is None:
            count = _REQUESTS_A_STREAM * (level.concurrency or 1)
        return orders if count is None else list(itertools.islice(orders, count))

    def warm_up(self, target: Target) -> None:
        """Send the warm-up requests, at the highest concurrency of the levels at most."""
        if self.prompts is None:
            first = self.levels[0].trace or ()
            orders: Iterable[Order] = itertools.islice(itertools.cycle(first), self.warmup)
        else:
            orders = itertools.islice(
                make_orders(self.prompts, self.inputs, self.outputs, self.seed), self.warmup
            )
        together = max((level.concurrency or 1 for level in self.levels), default=1)
        put_load(target, orders, [], concurrency=min(together, self.warmup or 1), timeout_s=self.timeout_s)


@dataclass
class Measured:
    """What one level showed."""

    level: Level
    records: list[Record] = field(default_factory=list)

    def to_json(self, limits: Mapping[str, float]) -> dict[str, Any]:
        """The figures, and of each request its times in seconds since the level began."""
        return {
            "load": str(self.level),
            "concurrency": self.level.concurrency,
            "rate": self.level.rate,
            "figures": summarize(self.records, limits),
            "records": [_plain(record) for record in self.records],
        }


def measure(
    plan: Plan,
    target: Target,
    found: list[Measured],
    on_progress: Callable[[Measured, bool], None],
) -> None:
    """Put every level of `plan` on `target`; each is appended to `found` as it begins.

    `on_progress` is called about twice a second with the level, and whether it is over.

    Raises:
        LaunchError: the server went away; `found` has what was seen until then.
    """
    if plan.warmup:
        plan.warm_up(target)
    for number, level in enumerate(plan.levels):
        orders = plan.orders(number)
        found.append(Measured(level))
        one = found[-1]
        put_load(
            target,
            orders,
            one.records,
            concurrency=level.concurrency,
            duration_s=plan.duration_s,
            timeout_s=plan.timeout_s,
            on_progress=functools.partial(on_progress, one, False),
        )
        on_progress(one, True)


def _plain(record: Record) -> dict[str, Any]:
    return {
        "sent_s": round(record.sent_s, 6),
        "late_s": round(record.late_s, 6),
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "asked_tokens": record.asked_tokens,
        "responses_s": [round(at, 6) for at in record.responses_s],
        "error": record.error,
        "is_done": record.is_done,
    }
