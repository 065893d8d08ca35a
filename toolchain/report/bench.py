"""The page of a benchmark: its figures, and how latencies are distributed and change with the load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from deploy.bench.table import error_rows, figure_rows, notes
from toolchain.report.html import WIDTH, document, table
from toolchain.report.svg import Axis, lines, percent

_HALF = ((WIDTH - 40) // 2, 280)
_UNITS = {"concurrency": "requests under way", "rate": "requests/s, arriving"}
_SHARES = (0, *range(5, 100, 5), 99, 100)


def render(result: Mapping[str, Any]) -> str:
    """The whole page of what `llmbuild bench` measured."""
    names = " and ".join(target["name"] for target in result["targets"])
    parts = [f"<h1>{escape(names)}</h1>"]
    if result["stopped"]:
        parts.append(f"<p><strong>Partial results: {escape(result['stopped'])}</strong></p>")
    parts += [_conditions(result), _figures(result)]
    parts += [f"<p>Note: {escape(note)}.</p>" for note in notes(result)]
    if result["objectives"]:
        parts += ["<h2>Objectives</h2>", table(*objective_rows(result["objectives"]), words=(0, 1, 2, 4))]
    parts += _by_load(result) + _distributions(result)
    if errors := error_rows(result):
        parts += ["<h2>Errors</h2>", table(("target", "load", "requests", "message"), errors, (0, 1, 3))]
    parts.append(
        "<p>TTFT: from sending a request to its first response. TPOT: the time after it, a token. ITL: gaps "
        "between the responses of a request. E2E: from sending to the last response.</p>"
    )
    return document(f"Benchmark of {names}", parts)


def objective_rows(objectives: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of what was wanted and what was measured."""
    rows = [
        [one["objective"], one["target"], one["load"], one["measured"], "met" if one["is_met"] else "NOT MET"]
        for one in objectives
    ]
    return ["objective", "target", "load", "measured", ""], rows


def _conditions(result: Mapping[str, Any]) -> str:
    limits = result["conditions"]["good_request"]
    said = {"measured": result["started"], **result["conditions"], **result["machine"]}
    said["good_request"] = ", ".join(f"{name[:-2]} {1e3 * limit:g} ms" for name, limit in limits.items())
    for target in result["targets"]:
        said[target["name"]] = f"{target['model']} at {target['address']}, {target['server']}"
    shown = {name.replace("_", " "): str(value) for name, value in said.items() if value not in (None, "")}
    return "<p>" + " · ".join(f"{escape(name)}: {escape(value)}" for name, value in shown.items()) + "</p>"


def _figures(result: Mapping[str, Any]) -> str:
    columns, rows = figure_rows(result)
    words = [number for number, name in enumerate(columns) if not name.startswith(">")]
    return "<h2>Figures</h2>" + table([name.removeprefix(">") for name in columns], rows, words)


def _by_load(result: Mapping[str, Any]) -> list[str]:
    """Throughput and time to first token over the load, where there are several."""
    for unit in _UNITS:
        found = [
            (target["name"], [level for level in target["levels"] if level[unit] is not None])
            for target in result["targets"]
        ]
        if max((len(levels) for _, levels in found), default=0) > 1:
            break
    else:
        return []
    highest = max(level[unit] for _, levels in found for level in levels)
    across = Axis.to(_UNITS[unit], highest, lambda value: f"{value:g}")
    speed = {name: _points(levels, unit, "output_tokens_per_s", None) for name, levels in found}
    first = {
        f"{name}, {part}" if len(found) > 1 else part: _points(levels, unit, "ttft_s", part)
        for name, levels in found
        for part in ("p50", "p95")
    }
    return [
        "<h2>Over the load</h2>",
        '<div class="pair">',
        _chart(across, "output tokens/s", speed, lambda value: f"{value:g}"),
        _chart(across, "TTFT, ms", first, lambda value: f"{value:g}"),
        "</div>",
    ]


def _points(
    levels: Sequence[Mapping[str, Any]], unit: str, name: str, part: str | None
) -> list[tuple[float, float]]:
    values = [(level[unit], level["figures"][name]) for level in levels]
    if part is None:
        return [(at, value) for at, value in values if value is not None]
    return [(at, 1e3 * value[part]) for at, value in values if value is not None]


def _distributions(result: Mapping[str, Any]) -> list[str]:
    """Which share of the requests was at least so fast."""
    charts = []
    for name, label in (
        ("ttft_s", "time to first token, ms"),
        ("itl_s", "gap between responses, ms"),
        ("tpot_s", "time per output token, ms"),
        ("e2e_s", "end to end, ms"),
    ):
        series = {}
        for target in result["targets"]:
            for level in target["levels"]:
                values = level["latencies"][name]
                if len(values) > 1:
                    who = f"{target['name']}, " if len(result["targets"]) > 1 else ""
                    ms = 1e3 * np.percentile(values, _SHARES)
                    series[who + level["load"]] = [
                        (float(at), share / 100) for at, share in zip(ms, _SHARES, strict=True)
                    ]
        if series:
            highest = max(points[-1][0] for points in series.values())
            across = Axis.to(label, highest, lambda value: f"{value:.4g}")
            up = Axis.to("share at most so long", 1.0, percent)
            charts.append(lines(across, up, series, size=_HALF))
    if not charts:
        return []
    return ["<h2>Distributions</h2>", f'<div class="pair">{"".join(charts)}</div>']


def _chart(across: Axis, label: str, series: Mapping[str, Sequence[tuple[float, float]]], form: Any) -> str:
    highest = max((up for points in series.values() for _, up in points), default=1.0)
    return lines(across, Axis.to(label, highest, form), series, size=_HALF)
