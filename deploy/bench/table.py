"""The figures of a result as rows: one a load and target, others beside the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LATENCIES = (
    ("TTFT p50, ms", "ttft_s", "p50"),
    ("TTFT p95, ms", "ttft_s", "p95"),
    ("TPOT p50, ms", "tpot_s", "p50"),
    ("TPOT p95, ms", "tpot_s", "p95"),
    ("ITL p99, ms", "itl_s", "p99"),
    ("E2E p95, ms", "e2e_s", "p95"),
)
_LATE_S = 0.02


def figure_rows(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows; a cell of a further target tells the ratio to the first: `(1.05x)`.

    Columns that begin with ">" hold numbers.
    """
    targets = result["targets"]
    are_several = len(targets) > 1
    has_goodput = bool(result["conditions"]["good_request"])
    columns = ["load", *(["target"] if are_several else []), ">answered", ">failed", ">output tokens/s"]
    columns += [">requests/s", *([">goodput/s"] if has_goodput else [])]
    columns += [f">{name}" for name, _, _ in _LATENCIES]
    rows = []
    for number in range(max((len(target["levels"]) for target in targets), default=0)):
        with_level = [target for target in targets if number < len(target["levels"])]
        for target in with_level:
            level = target["levels"][number]
            figures = level["figures"]
            first = None if target is with_level[0] else with_level[0]["levels"][number]["figures"]
            rates = ["output_tokens_per_s", "requests_per_s"]
            rates += ["goodput_requests_per_s"] if has_goodput else []
            rows.append(
                [
                    level["load"],
                    *([target["name"]] if are_several else []),
                    str(figures["answered"]),
                    str(figures["failed"]),
                    *(_cell(figures[rate], first and first[rate], 1.0, 2) for rate in rates),
                    *(
                        _cell(_of(figures, name, part), first and _of(first, name, part), 1e3, 1)
                        for _, name, part in _LATENCIES
                    ),
                ]
            )
    return columns, rows


def error_rows(result: Mapping[str, Any]) -> list[list[str]]:
    """Target, load, how many requests failed with a message, and the message."""
    return [
        [target["name"], level["load"], str(count), " ".join(message.split())[:160]]
        for target in result["targets"]
        for level in target["levels"]
        for message, count in level["figures"]["errors"].items()
    ]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the figures right."""
    found = []
    for target in result["targets"]:
        every = [level["figures"] for level in target["levels"] if level["figures"]["answered"]]
        if not all(figures["are_tokens_counted_by_server"] for figures in every):
            found.append(
                f"{target['name']} does not tell how many tokens it sends: each response counts as one"
            )
        asked = sum(figures["output_tokens_asked"] for figures in every)
        tokens = sum(figures["output_tokens"] for figures in every)
        if tokens < asked:
            found.append(
                f"{target['name']} ended its answers before the length asked for: {tokens} of {asked} tokens"
            )
        late = max((figures["sent_late_s"]["p99"] for figures in every), default=0.0)
        if late > _LATE_S:
            found.append(
                f"requests to {target['name']} were sent up to {1e3 * late:.0f} ms late (p99): this machine "
                "cannot keep up with the load"
            )
    return found


def _of(figures: Mapping[str, Any], name: str, part: str) -> float | None:
    found = figures[name]
    return None if found is None else float(found[part])


def _cell(value: float | None, first: float | None, scale: float, digits: int) -> str:
    if value is None:
        return "-"
    ratio = f" ({value / first:.2f}x)" if first else ""
    return f"{value * scale:.{digits}f}{ratio}"
