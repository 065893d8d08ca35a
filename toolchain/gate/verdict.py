"""The `gates` of a recipe: what they want measured, and whether the figures pass.

Measuring and judging are apart, so that another threshold judges the figures that are there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.errors import GateError, combined
from toolchain.gate.result import Evaluation

if TYPE_CHECKING:
    from toolchain.recipe.schema import Gates, HeldOutText

GATE_FILE = "gate.json"


def wanted(gates: Gates) -> dict[str, HeldOutText]:
    """The texts to measure on, by the gate that names it; gates of one text share the first's entry."""
    found: dict[str, HeldOutText] = {}
    for name, text in (("perplexity", gates.perplexity), ("kl", gates.kl)):
        if text is not None and not any(text.same_text(other) for other in found.values()):
            found[name] = text
    return found


def write_figures(path: Path, measured: Mapping[str, Evaluation]) -> None:
    """Write the evaluations, one for each text that is `wanted`."""
    figures = {name: evaluation.to_json() for name, evaluation in measured.items()}
    path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def read_figures(path: Path) -> dict[str, Evaluation]:
    """Read what `write_figures` wrote."""
    return {name: Evaluation.from_json(values) for name, values in json.loads(path.read_bytes()).items()}


def judge(gates: Gates, measured: Mapping[str, Evaluation]) -> dict[str, Any]:
    """Hold the figures against the thresholds; return what the manifest says of each gate.

    Raises:
        GateError: one fails; it tells the figures, and which layers cost most.
    """
    passed: dict[str, Any] = {}
    failures: list[GateError] = []
    if gates.perplexity is not None:
        figures = measured["perplexity"]
        failures += _judge_perplexity(figures, gates.perplexity.max, gates.perplexity.largest_increase)
        passed["perplexity"] = {
            "passed": True,
            "source": figures.source_perplexity,
            "quantized": figures.quantized_perplexity,
            "increase": figures.increase,
            "increase_error": figures.increase_error,
            "tokens": figures.tokens,
            "max": gates.perplexity.max,
            "max_increase": gates.perplexity.largest_increase,
        }
    if gates.kl is not None:
        figures = measured.get("kl") or measured["perplexity"]
        failures += _judge_kl(figures, gates.kl.max)
        passed["kl"] = {
            "passed": True,
            "kl": figures.kl,
            "kl_error": figures.kl_error,
            "top1": figures.top1,
            "tokens": figures.tokens,
            "max": gates.kl.max,
        }
    if failures:
        raise combined(failures)
    return passed


def _judge_perplexity(figures: Evaluation, most: float | None, increase: float | None) -> list[GateError]:
    failures = []
    before, after = figures.source_perplexity, figures.quantized_perplexity
    if increase is not None and figures.increase > increase:
        what = (
            f"perplexity rises by {figures.increase:.2%}, from {before:.4g} to {after:.4g}; "
            f"the recipe allows {increase:.2%}"
        )
        near = _is_near(figures.increase - increase, figures.increase_error)
        failures.append(_failure(what, "gates.perplexity.max_increase", figures, near))
    if most is not None and after > most:
        what = f"the perplexity is {after:.4g}, {before:.4g} before quantization; the recipe allows {most:g}"
        failures.append(_failure(what, "gates.perplexity.max", figures, near=False))
    return failures


def _judge_kl(figures: Evaluation, most: float) -> list[GateError]:
    if figures.kl <= most:
        return []
    what = f"the KL divergence from the source is {figures.kl:.4g}; the recipe allows {most:g}"
    return [_failure(what, "gates.kl.max", figures, _is_near(figures.kl - most, figures.kl_error))]


def _is_near(distance: float, error: float | None) -> bool:
    return error is not None and distance < 2 * error


def _failure(what: str, where: str, figures: Evaluation, near: bool) -> GateError:
    worst = figures.worst()
    rows = [
        f"       layer {layer.layer:>3} {layer.own_error:8.2%} by itself {layer.relative_error:8.2%} after it"
        for layer in worst
    ]
    noise = "the excess is within two standard errors: more windows would tell\n       " if near else ""
    why = "\n".join([f"{noise}error of the hidden states, the layers that add most:", *rows])
    return GateError(
        what,
        where=where,
        why=why,
        fix="quantize more finely (a smaller quantization.group_size), leave out what costs most "
        f'(quantization.exclude: [lm_head, "model.layers.{worst[0].layer}.*"]), or allow more in {where}',
    )
