"""The one table: every run beside the best peer's of the same method on the same model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.quantization.cases import OURS, Case
from benchmarks.quantization.child import Outcome
from benchmarks.quantization.quality import Quality


@dataclass(frozen=True)
class Measured:
    """A case, what became of it, how good the result is (or why it was not judged), the floor in seconds."""

    case: Case
    outcome: Outcome
    quality: Quality | str
    floor: float


def rows(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """A row a run. Ratios are to the best peer of the same method: below 1 is better than it."""
    return [_row(one, [other for other in measured if other.case.same == one.case.same]) for one in measured]


def _row(one: Measured, same: Sequence[Measured]) -> dict[str, Any]:
    case, outcome = one.case, one.outcome
    quality = one.quality if isinstance(one.quality, Quality) else None
    peers = [other for other in same if other.case.tool != OURS]
    fine = not outcome.problem
    return {
        "model": case.model,
        "method": case.method,
        "group": case.group_size or "-",
        "tool": case.tool + (f" {case.variant}" if case.variant else ""),
        "quantize, s": f"{outcome.quantize:.1f}" if fine else outcome.problem,
        "total, s": f"{outcome.total:.1f}" if fine else "-",
        "peak RSS, MB": f"{outcome.peak / 1e6:.0f}" if outcome.peak else "-",
        "KL": "-" if quality is None else f"{quality.kl:.5f} ± {quality.kl_error or 0:.5f}",
        "perplexity": "-" if quality is None else f"{quality.perplexity:.3f}",
        "judged by": quality.seen if quality else str(one.quality) or "-",
        "time ratio": _ratio(one, peers, lambda m: m.outcome.quantize),
        "total ratio": _ratio(one, peers, lambda m: m.outcome.total),
        "RSS ratio": _ratio(one, peers, lambda m: m.outcome.peak),
        "KL ratio": _ratio(one, peers, lambda m: m.quality.kl if isinstance(m.quality, Quality) else None),
        "of the floor": f"{100 * one.floor / outcome.quantize:.0f} %" if fine else "-",
    }


def _ratio(one: Measured, peers: Sequence[Measured], value: Callable[[Measured], float | None]) -> str:
    own = None if one.outcome.problem else value(one)
    theirs = [found for peer in peers if not peer.outcome.problem and (found := value(peer))]
    return f"{own / min(theirs):.2f}" if own and theirs else "-"
