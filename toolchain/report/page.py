"""The report of an artifact, from what its stages left: figures of the gates, errors, scales, sizes.

The same values give the same bytes: there is no date in it.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from toolchain.gate.result import Answer, Evaluation, Measured
from toolchain.gate.table import figure_table
from toolchain.model.families import linear_kind
from toolchain.plan.memory import human_bytes
from toolchain.report.html import WIDTH, document, table
from toolchain.report.svg import Axis, bars, histogram, lines, percent, shares

_SEARCHED = {
    "alpha": ("alpha, the exponent of the channel scales", 0.05),
    "mean_clip": ("clip ratio, mean over a linear's groups", 0.02),
}
"""What a report may say of a linear: in words, and the width of a part of its histogram."""
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Facts:
    """What a report shows.

    Args:
        name: of the artifact.
        about: what stands below it, such as the model and the method; name to value.
        linears: by full name of each quantized linear, what `quantization_report.json` says of it.
        measured: what the gates measured; None where nothing did.
        answers: to the smoke gate's prompts, by the checkpoint or by the engine.
        sizes: bytes of the checkpoint by kind of tensor.
    """

    name: str
    about: Mapping[str, str] = field(default_factory=dict)
    linears: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measured: Measured | None = None
    answers: Sequence[Answer] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)


def render(facts: Facts) -> str:
    """The whole page."""
    parts = [f"<h1>{escape(facts.name)}</h1>", _about(facts.about)]
    for gate, figures in (facts.measured.texts if facts.measured else {}).items():
        parts += _figures(figures, gate)
    parts += _answers(facts.answers)
    parts += _linears(facts.linears)
    parts += _choices(facts.linears)
    if facts.sizes:
        largest = dict(sorted(facts.sizes.items(), key=lambda part: -part[1]))
        parts += [
            "<h2>Size of the checkpoint</h2>",
            f"<p>{human_bytes(sum(largest.values()))} of tensors, all layers together.</p>",
            shares(largest, lambda value: human_bytes(int(value)), width=WIDTH),
        ]
    return document(facts.name, parts)


def _about(about: Mapping[str, str]) -> str:
    return "<p>" + " · ".join(f"{escape(name)}: {escape(value)}" for name, value in about.items()) + "</p>"


def _figures(figures: Evaluation, gate: str) -> list[str]:
    rounded = ", ".join(("weights", *figures.simulated))
    depth = len(figures.layers)
    highest = max((max(layer.relative_error, layer.own_error) for layer in figures.layers), default=0)
    series = {
        "error after the layer": [(layer.layer, layer.relative_error) for layer in figures.layers],
        "what the layer adds by itself": [(layer.layer, layer.own_error) for layer in figures.layers],
    }
    return [
        f"<h2>Beside the source, on the text of <code>gates.{escape(gate)}</code></h2>",
        f"<p>{figures.tokens} tokens predicted in {figures.windows} windows of {figures.window}, stride "
        f"{figures.stride}. Rounded: {escape(rounded)}.</p>",
        table(*figure_table(figures)),
        "<h2>Hidden states, layer by layer</h2>",
        "<p>Relative to the source's hidden states, root mean square over tokens. What a layer adds by "
        "itself is its error on the source's own inputs.</p>",
        lines(
            Axis.of_numbers("decoder layer", depth),
            Axis.to("relative error", highest, percent),
            series,
            size=(WIDTH, 320),
        ),
    ]


def _linears(linears: Mapping[str, Mapping[str, Any]]) -> list[str]:
    series: dict[str, list[tuple[float, float]]] = {}
    known = {
        name: facts["relative_error"]
        for name, facts in linears.items()
        if "relative_error" in facts and _LAYER.fullmatch(name)
    }
    if not known:
        return []
    for (kind, layer), errors in sorted(_by_kind(known).items(), key=lambda item: item[0][1]):
        series.setdefault(kind.rpartition(".")[2], []).append((layer, sum(errors) / len(errors)))
    depth = 1 + max(int(layer) for points in series.values() for layer, _ in points)
    highest = max(up for points in series.values() for _, up in points)
    worst = sorted(known.items(), key=lambda item: -item[1])[:8]
    return [
        "<h2>Outputs of the linears on the calibration text</h2>",
        "<p>Norm of what quantization changed over the norm of the output; experts are averaged.</p>",
        lines(
            Axis.of_numbers("decoder layer", depth),
            Axis.to("relative error", highest, percent),
            series,
            size=(WIDTH, 360),
        ),
        "<h2>The linears that changed most</h2>",
        table(
            ("linear", "relative error", "chosen"),
            [(name, f"{error:.2%}", _chosen(linears[name])) for name, error in worst],
            words=(0, 2),
        ),
    ]


def _answers(answers: Sequence[Answer]) -> list[str]:
    if not answers:
        return []
    rows = [
        (repr(one.prompt)[1:-1], f"{one.gap:.3f}", f"{one.same:.0%}", repr(one.text)[1:-1]) for one in answers
    ]
    columns = ("prompt", "gap, nats a token", "same tokens", "greedy answer")
    return [
        "<h2>Answers</h2>",
        "<p>The gap is by how much the reference holds the answer's tokens for less likely than its own "
        "choices in the same places; same tokens are its own choices.</p>",
        table(columns, rows, words=(0, 3)),
    ]


def _by_kind(values: Mapping[str, float]) -> dict[tuple[str, int], list[float]]:
    """The values of linears of one kind and layer."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for name, value in values.items():
        match = _LAYER.fullmatch(name)
        if match:
            found[linear_kind(match[2]), int(match[1])].append(value)
    return found


def _chosen(facts: Mapping[str, Any]) -> str:
    """What the method says of a linear besides its errors."""
    said = []
    for name, value in facts.items():
        words = name.replace("_", " ")
        if name.startswith("relative_error") or value is False or not isinstance(value, float | int | str):
            continue
        said.append(
            words
            if value is True
            else f"{words} {value:.3g}"
            if isinstance(value, float)
            else f"{words} {value}"
        )
    return ", ".join(said)


def _choices(linears: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Histograms of what the search chose."""
    charts = []
    for name, (label, step) in _SEARCHED.items():
        values = [
            float(facts[name]) for facts in linears.values() if isinstance(facts.get(name), float | int)
        ]
        if not values:
            continue
        low = math.floor(min(values) * 10) / 10
        # Each part is centred on one of the values that a search in such steps can choose.
        count = round((1 - low) / step) + 1
        parts = histogram(values, low - step / 2, 1 + step / 2, count)
        across = Axis(
            label,
            low - step / 2,
            1 + step / 2,
            tuple(low + tenth / 10 for tenth in range(round((1 - low) * 10) + 1)),
            lambda value: f"{value:.3g}",
        )
        up = Axis.to("linears", max(height for _, _, height in parts), lambda value: f"{value:.3g}")
        charts.append(bars(across, up, parts, size=((WIDTH - 40) // 2, 260)))
    return ["<h2>What the search chose</h2>", f'<div class="pair">{"".join(charts)}</div>'] if charts else []
