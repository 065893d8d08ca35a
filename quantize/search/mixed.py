"""Quantization with a method for each group of linears, chosen so that the model keeps to a budget.

The choice is made on what `sensitivity` measures, by `search`. A budget in bytes is kept exactly. A budget in
KL divergence is kept as measured: it is about proportional to the sum of the errors, and the factor is found
by quantizing and measuring, a few times at most.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from quantize.calibration import Calibration
from quantize.driver import Machine, quantize_model
from quantize.formats.base import Format
from quantize.formats.tensorfile import write_text_file
from quantize.methods.base import Method
from quantize.search.choice import Choice, cheapest
from quantize.search.sensitivity import Unit, measure_sensitivity
from quantize.selection import Override
from toolchain.errors import QuantizeError, os_error
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import expected_tensors, layer_prefix
from toolchain.model.selection import choose
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.progress import Progress, Silent

ROUNDS = 4
"""Models that are quantized and measured for a budget in KL divergence, at most."""


@dataclass(frozen=True)
class Budget:
    """What the model must keep to; exactly one is given.

    Args:
        max_bits: bits of a weight of the searched linears on average, scales included.
        max_bytes: all weights of the checkpoint.
        max_kl: mean KL divergence from the source, in nats.
    """

    max_bits: float | None = None
    max_bytes: int | None = None
    max_kl: float | None = None


@dataclass(frozen=True)
class Search:
    """What is searched.

    Args:
        candidates: methods by their names; None leaves linears as they are.
        budget: what the model must keep to.
        divergence: measures the mean KL divergence of a quantized model's directory, for a budget of it.
    """

    candidates: Mapping[str, Method | None]
    budget: Budget
    divergence: Callable[[Path], float] | None = None


def quantize_searched(
    source_dir: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    search: Search,
    calibration: Calibration,
    exclude: Sequence[str],
    overrides: Sequence[Override],
    kv_cache: str | None,
    form: Format,
    machine: Machine,
    events: Progress | None = None,
) -> dict[str, Any]:
    """Write `source_dir`, quantized within the budget, to `out_dir`; else as `quantize_model`.

    Linears that `exclude` or `overrides` name are not searched; under `max_bytes` no override may quantize.
    The report has a `search` of its own: every unit with its errors and bytes under each candidate, and what
    was chosen.

    Raises:
        QuantizeError: the budget cannot be kept.
    """
    events = events or Silent()
    spec = load_spec(source_dir)
    if spec.moe is not None:
        raise QuantizeError(
            f"a search does not cover the experts of {spec.architecture}",
            where="quantization.search",
            fix="give methods in quantization.overrides",
        )
    fixed = [(own.modules, False) for own in overrides]
    searched = {name for name, free in choose(spec, True, False, exclude, fixed).items() if free}
    units = measure_sensitivity(
        source_dir,
        work_dir / "sensitivity",
        candidates=search.candidates,
        searched=searched,
        calibration=calibration,
        form=form,
        machine=machine,
        events=events,
    )

    def quantize(choice: Choice, out: Path, work: Path, about: Mapping[str, Any]) -> dict[str, Any]:
        chosen = [
            Override(linear, search.candidates[method])
            for unit, method in zip(units, methods_of(units, choice), strict=True)
            for linear in unit.linears
        ]
        return quantize_model(
            source_dir,
            out,
            work,
            method=None,
            calibration=calibration,
            exclude=exclude,
            overrides=[*overrides, *chosen],
            kv_cache=kv_cache,
            form=form,
            machine=machine,
            about={"search": table(units, choice) | dict(about)},
            events=events,
        )

    if search.budget.max_kl is None:
        choice = within_bytes(units, _byte_limit(source_dir, spec, units, search.budget, kv_cache, form))
        _tell(events, units, choice)
        return quantize(choice, out_dir, work_dir / "quantize", {})
    if search.divergence is None:
        raise QuantizeError(
            "a budget of divergence needs a text to measure it on", where="quantization.search"
        )
    return _within_divergence(
        units, search.budget.max_kl, search.divergence, quantize, out_dir, work_dir, events
    )


def within_bytes(units: Sequence[Unit], limit: float) -> Choice:
    """The choice of least error in at most `limit` bytes. Raises QuantizeError where nothing is so small."""
    options = [[(cost.error, cost.nbytes) for cost in unit.costs.values()] for unit in units]
    choice = cheapest(options, limit)
    if choice is None:
        least = sum(min(nbytes for _, nbytes in unit) for unit in options)
        raise QuantizeError(
            f"the searched linears take {least} bytes at least, and the budget leaves them {int(limit)}",
            where="quantization.search",
            fix="raise the budget, or add a smaller method to the candidates",
        )
    return choice


def within_error(units: Sequence[Unit], limit: float) -> Choice | None:
    """The choice of fewest bytes whose errors sum to at most `limit`; its cost is in bytes."""
    return cheapest([[(cost.nbytes, cost.error) for cost in unit.costs.values()] for unit in units], limit)


def methods_of(units: Sequence[Unit], choice: Choice) -> list[str]:
    """The name of the method that each unit gets."""
    return [list(unit.costs)[option] for unit, option in zip(units, choice.options, strict=True)]


def table(units: Sequence[Unit], choice: Choice) -> dict[str, Any]:
    """What was decided, and from what, as JSON."""
    methods = methods_of(units, choice)
    taken = [unit.costs[method] for unit, method in zip(units, methods, strict=True)]
    nbytes = sum(cost.nbytes for cost in taken)
    return {
        "bytes": nbytes,
        "bits_per_weight": round(8 * nbytes / sum(unit.weights for unit in units), 6),
        "error": float(f"{sum(cost.error for cost in taken):.6g}"),
        "proven_best": choice.exact,
        "units": [
            {
                "layer": unit.layer,
                "kind": unit.kind,
                "linears": list(unit.linears),
                "weights": unit.weights,
                "chosen": method,
                "candidates": {
                    name: {"error": float(f"{cost.error:.6g}"), "bytes": cost.nbytes}
                    for name, cost in unit.costs.items()
                },
            }
            for unit, method in zip(units, methods, strict=True)
        ],
    }


def _byte_limit(
    source_dir: Path,
    spec: ModelSpec,
    units: Sequence[Unit],
    budget: Budget,
    kv_cache: str | None,
    form: Format,
) -> float:
    """The bytes that the budget leaves to the units; all else is taken as the source has it."""
    if budget.max_bits is not None:
        return sum(unit.weights for unit in units) * budget.max_bits / 8
    assert budget.max_bytes is not None
    checkpoint = Checkpoint.open(source_dir)
    free = {f"{linear}.weight" for unit in units for linear in unit.linears}
    others = [name for name in expected_tensors(spec) if name in checkpoint and name not in free]
    rest = sum(checkpoint.location(name).nbytes for name in others)
    if kv_cache is not None:
        one = torch.ones(())
        scales = [form.kv_tensors(layer_prefix(layer), one, one) for layer in range(spec.num_hidden_layers)]
        rest += sum(tensor.nbytes for layer in scales for tensor in layer.values())
    return budget.max_bytes - rest


def _within_divergence(
    units: Sequence[Unit],
    max_kl: float,
    divergence: Callable[[Path], float],
    quantize: Callable[[Choice, Path, Path, Mapping[str, Any]], dict[str, Any]],
    out_dir: Path,
    work_dir: Path,
    events: Progress,
) -> dict[str, Any]:
    """Quantize and measure until the smallest model that keeps to `max_kl` is found, or rounds run out.

    The first round takes the smallest model that there is. The next take the fewest bytes within the error
    that the divergences measured so far let expect `max_kl` of, a little on the safe side.
    """
    least = sum(min(cost.error for cost in unit.costs.values()) for unit in units)
    limit = float("inf")
    above: tuple[float, float] | None = None  # error and divergence of the best round that missed
    best: tuple[Choice, float, int] | None = None
    rounds: list[dict[str, Any]] = []
    seen: dict[tuple[int, ...], None] = {}
    for number in range(ROUNDS):
        choice = within_error(units, max(limit, least))
        assert choice is not None  # least is the sum of the least errors
        if choice.options in seen:
            break
        seen[choice.options] = None
        root = work_dir / f"round-{number}"
        kl = _measured(choice, root, quantize, divergence)
        rounds.append({"error": choice.weight, "linear_bytes": int(choice.cost), "kl": kl})
        events.note(f"search: {int(choice.cost)} bytes of linears give a KL divergence of {kl:.4g}")
        if kl <= max_kl and (best is None or choice.cost < best[0].cost):
            best = (choice, kl, number)
        if kl > max_kl and (above is None or choice.weight < above[0]):
            above = (choice.weight, kl)
        if above is None or (best is not None and best[1] > 0.9 * max_kl):
            break  # the smallest will do, or there is little left to gain
        limit = above[0] * max_kl / above[1] * 0.95
        if best is not None:
            limit = max((best[0].weight * above[0]) ** 0.5, best[0].weight)
        elif number == ROUNDS - 2:
            limit = least  # the last resort
    if best is None:
        raise QuantizeError(
            f"no choice among the candidates keeps the KL divergence to {max_kl:g}: the best gives "
            f"{min(one['kl'] for one in rounds):.4g}",
            where="quantization.search.max_kl",
            fix="raise the budget, or add a more exact method or none to the candidates",
        )
    choice, kl, number = best
    _tell(events, units, choice)
    root = work_dir / f"round-{number}"
    about = {"kl": kl, "rounds": rounds}
    if (root / "out").exists():
        shutil.rmtree(root / "out")
    return quantize(choice, out_dir, root / "work", about)


def _measured(
    choice: Choice,
    root: Path,
    quantize: Callable[[Choice, Path, Path, Mapping[str, Any]], dict[str, Any]],
    divergence: Callable[[Path], float],
) -> float:
    """The divergence of a choice; known from an interrupted run, or measured on the quantized model."""
    known = root / "kl.json"
    if known.exists():
        found = json.loads(known.read_text(encoding="utf-8"))
        if found["options"] == list(choice.options):
            return float(found["kl"])
        shutil.rmtree(root)
    out = root / "out"
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        quantize(choice, out, root / "work", {})
        kl = divergence(out)
        shutil.rmtree(out)
        write_text_file(known, json.dumps({"options": list(choice.options), "kl": kl}) + "\n")
    except OSError as error:
        raise os_error(error, "keep the state of the search") from error
    return kl


def _tell(events: Progress, units: Sequence[Unit], choice: Choice) -> None:
    """The table, a line a layer: what each group got, and the error that this adds."""
    facts = table(units, choice)
    lines: dict[int, list[str]] = {}
    for unit in facts["units"]:
        error = unit["candidates"][unit["chosen"]]["error"]
        lines.setdefault(unit["layer"], []).append(f"{unit['kind']} {unit['chosen']} ({error:.1e})")
    for layer, parts in lines.items():
        events.note(f"layer {layer}: " + ", ".join(parts))
    events.note(f"search: {facts['bits_per_weight']:.3f} bits a weight of the linears searched")
