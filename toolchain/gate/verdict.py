"""The `gates` of a recipe: what they want measured, and whether the figures pass.

Measuring and judging are apart, so that another threshold judges the figures that are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.errors import GateError, combined
from toolchain.gate.result import Answer, Evaluation, LinearError, Measured
from toolchain.gate.table import floor_line

if TYPE_CHECKING:
    from toolchain.recipe.schema import Gates, HeldOutText, KlGate, PerplexityGate, SmokeGate

GATE_FILE = "gate.json"
REPORT_FILE = "quantization_report.json"


def wanted(gates: Gates) -> dict[str, HeldOutText]:
    """The texts to measure on, by the gate that names it; gates of one text share the first's entry."""
    found: dict[str, HeldOutText] = {}
    for name, text in (("perplexity", gates.perplexity), ("kl", gates.kl)):
        if text is not None and not any(text.same_text(other) for other in found.values()):
            found[name] = text
    return found


def worst_linears(checkpoint: Path, count: int = 10) -> tuple[LinearError, ...]:
    """The linears that quantization changed most, by the report beside the checkpoint, if there is one."""
    file = checkpoint / REPORT_FILE
    report = json.loads(file.read_bytes()) if file.is_file() else {}
    known = [
        LinearError(module, facts["relative_error"])
        for module, facts in report.get("linears", {}).items()
        if "relative_error" in facts
    ]
    return tuple(sorted(known, key=lambda linear: -linear.relative_error)[:count])


def write_measured(
    path: Path,
    texts: Mapping[str, Evaluation],
    linears: tuple[LinearError, ...] = (),
    answers: tuple[Answer, ...] = (),
) -> None:
    """Write the evaluations, one for each text that is `wanted`, the worst linears, and answers."""
    figures = {
        "texts": {name: evaluation.to_json() for name, evaluation in texts.items()},
        "linears": [asdict(linear) for linear in linears],
        "answers": [asdict(answer) for answer in answers],
    }
    path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def read_measured(path: Path) -> Measured:
    """Read what `write_measured` wrote."""
    values = json.loads(path.read_bytes())
    return Measured(
        {name: Evaluation.from_json(figures) for name, figures in values["texts"].items()},
        tuple(LinearError(**linear) for linear in values["linears"]),
        tuple(Answer.from_json(answer) for answer in values["answers"]),
    )


def judge(gates: Gates, measured: Measured) -> dict[str, Any]:
    """Hold the figures against the thresholds; return what the manifest says of each gate.

    Raises:
        GateError: one fails; it tells the figures, and which layers and linears cost most.
    """
    passed: dict[str, Any] = {}
    failures: list[GateError] = []
    if gates.perplexity is not None:
        figures, gate = measured.texts["perplexity"], gates.perplexity
        failures += _failures(_perplexity_bounds(figures, gate), figures, measured.linears)
        passed["perplexity"] = {
            "passed": True,
            "source": figures.source_perplexity,
            "quantized": figures.quantized_perplexity,
            "increase": figures.increase,
            "increase_error": figures.increase_error,
            "tokens": figures.tokens,
            "max": gate.max,
            "max_increase": gate.largest_increase,
        }
    if gates.kl is not None:
        figures = measured.texts.get("kl") or measured.texts["perplexity"]
        failures += _failures(_kl_bounds(figures, gates.kl), figures, measured.linears)
        passed["kl"] = {
            "passed": True,
            "kl": figures.kl,
            "kl_error": figures.kl_error,
            "kl_over_floor": figures.kl_over_floor,
            "top1": figures.top1,
            "top1_error": figures.top1_error,
            "tokens": figures.tokens,
            "max": gates.kl.max,
            "max_over_floor": gates.kl.max_over_floor,
            "min_top1": gates.kl.least_top1,
        }
    if failures:
        raise combined(failures)
    if gates.smoke is not None and measured.answers:
        passed["smoke"] = judge_answers(gates.smoke, measured.answers, "source")
    return passed


def judge_answers(gate: SmokeGate, answers: Sequence[Answer], reference: str) -> dict[str, Any]:
    """Look at the answers to the smoke gate's prompts; return what the manifest says of them.

    Args:
        gate: the recipe's.
        answers: one a prompt.
        reference: what they were held against: "source" or "checkpoint".

    Raises:
        GateError: one is not in the tokenizer's words or not what the reference would say, or all are empty.
    """
    failures = []
    if not any(answer.text.strip() for answer in answers):
        failures.append(_bad_answer("no prompt gets an answer", answers[0]))
    for answer in answers:
        if answer.foreign:
            what = f"an answer has {answer.foreign} tokens that the tokenizer does not know"
        elif answer.gap > gate.max_gap:
            what = (
                f"an answer's tokens are {answer.gap:.2g} nats less likely than the {reference}'s own "
                f"choices; the recipe allows {gate.max_gap:g}"
            )
        else:
            continue
        failures.append(_bad_answer(what, answer))
    if failures:
        raise combined(failures)
    return {
        "passed": True,
        "prompts": len(answers),
        "max_gap": gate.max_gap,
        "gap": max(answer.gap for answer in answers),
        "same": sum(answer.same for answer in answers) / len(answers),
    }


def _bad_answer(what: str, answer: Answer) -> GateError:
    return GateError(
        what,
        where="gates.smoke",
        why=f"prompt: {answer.prompt!r}\n       answer: {answer.text!r}\n"
        f"       tokens: {' '.join(map(str, answer.tokens))}",
        fix="if the other gates pass, the engine is at fault: build again with --force engine; if not, "
        "quantize more finely",
    )


@dataclass(frozen=True)
class _Bound:
    """One threshold and what it is held against.

    Args:
        field: of the recipe.
        excess: by how much the figure is beyond it; it fails where that is positive.
        error: standard error of the figure, in the same unit.
        what: the sentence that tells both.
    """

    field: str
    excess: float
    error: float | None
    what: str


def _perplexity_bounds(figures: Evaluation, gate: PerplexityGate) -> Iterator[_Bound]:
    before, after = figures.source_perplexity, figures.quantized_perplexity
    if gate.largest_increase is not None:
        yield _Bound(
            "gates.perplexity.max_increase",
            figures.increase - gate.largest_increase,
            figures.increase_error,
            f"perplexity rises by {figures.increase:.2%}, from {before:.4g} to {after:.4g}; "
            f"the recipe allows {gate.largest_increase:.2%}",
        )
    if gate.max is not None:
        yield _Bound(
            "gates.perplexity.max",
            after - gate.max,
            None,
            f"the perplexity is {after:.4g}, {before:.4g} before quantization; "
            f"the recipe allows {gate.max:g}",
        )


def _kl_bounds(figures: Evaluation, gate: KlGate) -> Iterator[_Bound]:
    if gate.max is not None:
        yield _Bound(
            "gates.kl.max",
            figures.kl - gate.max,
            figures.kl_error,
            f"the KL divergence from the source is {figures.kl:.4g}; the recipe allows {gate.max:g}",
        )
    if gate.max_over_floor is not None:
        times, floor = figures.kl_over_floor, figures.floor
        if times is None or floor is None:
            raise GateError(
                "there is no arithmetic floor to compare with: the source is stored in float32",
                where="gates.kl.max_over_floor",
                fix="set gates.kl.max, in nats, instead",
            )
        yield _Bound(
            "gates.kl.max_over_floor",
            times - gate.max_over_floor,
            None if figures.kl_error is None else figures.kl_error / floor.kl,
            f"the KL divergence from the source is {times:.3g} times that of {floor.dtype} arithmetic; "
            f"the recipe allows {gate.max_over_floor:g} times",
        )
    if gate.least_top1 is not None:
        yield _Bound(
            "gates.kl.min_top1",
            gate.least_top1 - figures.top1,
            figures.top1_error,
            f"the likeliest token is the source's in {figures.top1:.2%} of the places; "
            f"the recipe wants {gate.least_top1:.2%}",
        )


def _failures(
    bounds: Iterator[_Bound], figures: Evaluation, linears: tuple[LinearError, ...]
) -> list[GateError]:
    return [_failure(bound, figures, linears) for bound in bounds if bound.excess > 0]


def _failure(bound: _Bound, figures: Evaluation, linears: tuple[LinearError, ...]) -> GateError:
    worst = figures.worst()
    rows = [
        f"layer {layer.layer:>3} {layer.own_error:8.2%} by itself {layer.relative_error:8.2%} after it"
        for layer in worst
    ]
    why = ["error of the hidden states, the layers that add most:", *rows]
    if bound.error is not None and bound.excess < 2 * bound.error:
        why.insert(0, "the excess is within two standard errors: more windows would tell")
    if linears:
        width = max(len(linear.module) for linear in linears[:5])
        why.append("error of the outputs on the calibration text, the linears that changed most:")
        why += [f"{linear.module:<{width}} {linear.relative_error:8.2%}" for linear in linears[:5]]
    if figures.floor is not None:
        why.append(f"for comparison, {floor_line(figures.floor)}")
    return GateError(
        bound.what,
        where=bound.field,
        why="\n       ".join(why),
        fix="quantize more finely (a smaller quantization.group_size), leave out what costs most "
        f'(quantization.exclude: [lm_head, "model.layers.{worst[0].layer}.*"]), '
        f"or allow more in {bound.field}",
    )
