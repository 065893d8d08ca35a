"""What the report shows, read back from its HTML."""

import re
import xml.etree.ElementTree as ET
from typing import Any

from toolchain.gate.result import Answer, Evaluation, Floor, LayerError, Measured
from toolchain.report.page import Facts, render

FIGURES = Evaluation(
    window=16, stride=8, windows=4, tokens=60, source_perplexity=10.0, quantized_perplexity=10.4,
    increase=0.04, increase_error=0.004, kl=0.02, kl_error=0.001, top1=0.9, top1_error=0.02,
    simulated=("activations as FP8",), floor=Floor("bfloat16", 0.0001, 0.0004, 0.99),
    layers=(LayerError(0, 0.1, 0.1), LayerError(1, 0.13, 0.07)),
)  # fmt: skip
LINEARS: dict[str, dict[str, Any]] = {
    f"model.layers.{layer}.{name}": {"relative_error": 0.02 * (layer + 1), "alpha": 0.35, "mean_clip": 0.9}
    for layer in range(2)
    for name in ("self_attn.q_proj", "mlp.experts.0.up_proj", "mlp.experts.1.up_proj")
}


def charts(html: str) -> list[ET.Element]:
    """Every chart, parsed: an SVG that is not well-formed fails here."""
    return [ET.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def points(chart: ET.Element) -> list[str]:
    return [title.text or "" for title in chart.iter("title")]


def test_every_part_is_shown() -> None:
    html = render(
        Facts("demo", {"model": "m"}, LINEARS, Measured({"kl": FIGURES}), (), {"norms": 10, "head": 30})
    )
    hidden, linears, alpha, clip, sizes = charts(html)
    assert "what the layer adds by itself, decoder layer 1: 7%" in points(hidden)
    assert "q_proj, decoder layer 1: 4%" in points(linears)
    assert len(points(linears)) == 4  # two experts of one layer share a point
    assert "0.325 to 0.375: 6" in points(alpha)
    assert "0.89 to 0.91: 6" in points(clip)
    assert [text.text for text in sizes.iter("text")][:2] == ["head", "30 B, 75%"]
    for said in ("+4.000%", "± 0.400%", "0.000400", "activations as FP8", "gates.kl", "stride 8"):
        assert said in html


def test_the_same_values_give_the_same_bytes() -> None:
    facts = Facts("demo", {}, LINEARS, Measured({"kl": FIGURES}), (), {"norms": 10})
    assert render(facts) == render(facts)


def test_a_plain_checkpoint_without_gates_has_sizes_alone() -> None:
    html = render(Facts("demo", {}, {}, None, (), {"norms": 10}))
    assert len(charts(html)) == 1
    assert "Hidden states" not in html


def test_one_layer_without_any_error_can_be_drawn() -> None:
    exact = Evaluation.from_json(
        FIGURES.to_json() | {"layers": [{"layer": 0, "relative_error": 0.0, "own_error": 0.0}], "floor": None}
    )
    linears = {"model.layers.0.mlp.up_proj": {"relative_error": 0.0}}
    html = render(Facts("demo", {}, linears, Measured({"kl": exact})))
    assert len(charts(html)) == 2
    assert "nan" not in html


def test_answers_are_shown_on_one_line_each() -> None:
    html = render(Facts("demo", answers=[Answer("a\n<b>", "yes\n", (1,), 0.25, 0.5, 0)]))
    assert "a\\n&lt;b&gt;" in html
    assert "yes\\n" in html
    assert ">0.250<" in html


def test_names_cannot_break_the_page() -> None:
    name = '<script>&"'
    html = render(Facts(name, {name: name}, {name: {"relative_error": 0.1}}, None, (), {name: 1}))
    assert "<script>" not in html
    assert len(charts(html)) == 1  # a linear of no layer has no place in the chart
