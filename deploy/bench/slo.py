"""Objectives on figures: `ttft_p95=200ms`, `output_tokens_per_s=400`, `errors=0`; and limits on a request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploy.bench.figures import PERCENTILES
from toolchain.errors import UsageError

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LATENCIES = ("ttft", "tpot", "itl", "e2e")
_STATISTICS = ("mean", "max", *(f"p{p}" for p in PERCENTILES))
_AT_LEAST = ("output_tokens_per_s", "input_tokens_per_s", "requests_per_s", "goodput_requests_per_s")


@dataclass(frozen=True)
class Objective:
    """What one figure must be.

    Args:
        name: as given, for example `ttft_p95`.
        bound: seconds, or so many a second, or a share of the requests.
        text: the bound as given.
    """

    name: str
    bound: float
    text: str

    @classmethod
    def parse(cls, given: str) -> Objective:
        """Read `NAME=BOUND`: a latency's statistic at most, a throughput at least, a share of errors at most.

        Raises:
            UsageError: there is no such figure, or the bound is no number with its unit.
        """
        name, _, text = given.partition("=")
        latency, _, statistic = name.rpartition("_")
        if latency in _LATENCIES and statistic in _STATISTICS:
            return cls(name, _seconds(given, text), text)
        if name in _AT_LEAST and (found := re.fullmatch(r"\d+(\.\d+)?", text)):
            return cls(name, float(found[0]), text)
        if name == "errors" and (found := re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)):
            return cls(name, float(found[1]) / (100 if found[2] else 1), text)
        raise UsageError(
            f"{given!r} is no objective",
            why=f"figures are {', '.join(_LATENCIES)} with _{', _'.join(_STATISTICS)}; "
            f"{', '.join(_AT_LEAST)}; errors",
            fix="give one like ttft_p95=200ms, output_tokens_per_s=400 or errors=1%",
        )

    def figure(self, figures: Mapping[str, Any]) -> float | None:
        """What it was; None where it could not be measured."""
        if self.name == "errors":
            ended = figures["answered"] + figures["failed"]
            return figures["failed"] / ended if ended else None
        if self.name in _AT_LEAST:
            value = figures.get(self.name)
            return None if value is None else float(value)
        latency, _, statistic = self.name.rpartition("_")
        found = figures[f"{latency}_s"]
        return None if found is None else float(found[statistic])

    def is_met(self, figure: float | None) -> bool:
        """Whether `figure` is good enough; what was not measured is not."""
        if figure is None:
            return False
        return figure >= self.bound if self.name in _AT_LEAST else figure <= self.bound

    def show(self, figure: float | None) -> str:
        """The figure in a unit that reads well."""
        if figure is None:
            return "not measured"
        if self.name == "errors":
            return f"{figure:.2%}"
        return f"{figure:.1f}" if self.name in _AT_LEAST else f"{1000 * figure:.1f} ms"

    def __str__(self) -> str:
        return f"{self.name} {'>=' if self.name in _AT_LEAST else '<='} {self.text}"


def parse_limits(given: Sequence[str]) -> dict[str, float]:
    """Limits of a good request, `ttft=200ms`, by field of `Record`, in seconds. Raises UsageError."""
    limits = {}
    for text in given:
        name, _, bound = text.partition("=")
        if name not in ("ttft", "tpot", "e2e"):
            raise UsageError(f"{text!r} limits no request", fix="limit ttft, tpot or e2e, like ttft=200ms")
        limits[f"{name}_s"] = _seconds(text, bound)
    return limits


def _seconds(given: str, text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    if found is None:
        raise UsageError(f"{given!r} has no time", fix="give it with its unit: 200ms, 1.5s, 800us")
    return float(found[1]) * _UNITS[found[2]]
