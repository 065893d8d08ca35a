"""From records to figures; `deploy.bench` defines them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deploy.bench.load import Record

PERCENTILES = (50, 90, 95, 99)
LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")


def distribution(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, standard deviation, extremes and percentiles; None of no values."""
    if not values:
        return None
    found = np.asarray(values, dtype=np.float64)
    percentiles = np.percentile(found, PERCENTILES)
    return {
        "count": len(values),
        "mean": float(found.mean()),
        "std": float(found.std()),
        "min": float(found.min()),
        "max": float(found.max()),
        **{f"p{p}": float(value) for p, value in zip(PERCENTILES, percentiles, strict=True)},
    }


def latencies(records: Sequence[Record]) -> dict[str, list[float]]:
    """Every TTFT, TPOT, ITL and E2E of the answered requests, in seconds."""
    answered = [record for record in records if record.is_answered]
    return {
        "ttft_s": [record.ttft_s for record in answered],
        "tpot_s": [tpot for record in answered if (tpot := record.tpot_s) is not None],
        "itl_s": [gap for record in answered for gap in record.itl_s],
        "e2e_s": [record.e2e_s for record in answered],
    }


def summarize(records: Sequence[Record], limits: Mapping[str, float] | None = None) -> dict[str, Any]:
    """The figures of one load.

    Args:
        records: its requests; those that did not end are counted as unfinished and nowhere else.
        limits: what a request must keep to count as goodput: seconds by "ttft_s", "tpot_s", "e2e_s".
    """
    answered = [record for record in records if record.is_answered]
    failed = [record for record in records if record.error is not None]
    seconds = max((r.responses_s[-1] for r in answered), default=0.0) - min(
        (record.sent_s for record in answered), default=0.0
    )
    inputs = [record.input_tokens for record in answered]
    outputs = [record.output_tokens for record in answered]
    known_inputs = [tokens for tokens in inputs if tokens is not None]
    are_inputs_known = len(known_inputs) == len(inputs) and bool(inputs)

    def rate(count: float) -> float | None:
        return count / seconds if seconds > 0 else None

    figures: dict[str, Any] = {
        "requests": len(records),
        "answered": len(answered),
        "failed": len(failed),
        "unfinished": len(records) - len(answered) - len(failed),
        "errors": dict(Counter(str(record.error) for record in failed).most_common()),
        "duration_s": seconds,
        "input_tokens": sum(known_inputs) if are_inputs_known else None,
        "output_tokens": sum(outputs),
        "output_tokens_asked": sum(record.asked_tokens for record in answered),
        "are_tokens_counted_by_server": all(record.is_counted for record in answered) and bool(answered),
        "requests_per_s": rate(len(answered)),
        "input_tokens_per_s": rate(sum(known_inputs)) if are_inputs_known else None,
        "output_tokens_per_s": rate(sum(outputs)),
        "input_length": distribution(known_inputs),
        "output_length": distribution(outputs),
        "sent_late_s": distribution([record.late_s for record in records]),
        **{name: distribution(values) for name, values in latencies(records).items()},
    }
    if limits:
        good = sum(_keeps(record, limits) for record in answered)
        figures["goodput_requests_per_s"] = rate(good)
        figures["good_share"] = good / max(1, len(answered) + len(failed))
    return figures


def _keeps(record: Record, limits: Mapping[str, float]) -> bool:
    for name, limit in limits.items():
        value = getattr(record, name)
        if value is not None and value > limit:
            return False
    return True
