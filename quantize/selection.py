"""Which linears of a model are quantized, by which method, and whether their shapes allow it."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantize.method import Method
from toolchain.errors import QuantizeError
from toolchain.model.families import layer_prefix, linear_kind, linear_kinds, linear_shapes, routers
from toolchain.model.spec import ModelSpec

ALWAYS_EXCLUDED = ("lm_head", "model.embed_tokens")
"""TensorRT-LLM has no 4-bit form of these; ModelOpt lists them in this order."""


@dataclass(frozen=True)
class Override:
    """Another method for some linears.

    Args:
        modules: a full name, or a glob pattern of full names.
        method: None leaves them as they are.
    """

    modules: str
    method: Method | None


def modules(spec: ModelSpec) -> tuple[list[str], list[str]]:
    """Full names: what is never quantized, `ALWAYS_EXCLUDED` and the routers; and all linears."""
    layers = range(spec.num_hidden_layers)
    gates = [layer_prefix(layer) + name for layer in layers for name in routers(spec, layer)]
    linears = [layer_prefix(layer) + name for layer in layers for name in linear_shapes(spec, layer)]
    return [*ALWAYS_EXCLUDED, *gates], linears


def assign_methods(
    spec: ModelSpec, method: Method | None, exclude: Sequence[str], overrides: Sequence[Override] = ()
) -> dict[str, Method]:
    """The method of each linear that is quantized, by full name, in the order of the model.

    Args:
        spec: the model.
        method: for what no pattern matches.
        exclude: names or patterns of linears that stay as they are, whatever overrides say.
        overrides: the first that matches wins.

    Raises:
        QuantizeError: a pattern that matches no linear; patterns that leave nothing to quantize.
    """
    always, linears = modules(spec)
    known = [*always, *linears]
    chosen: dict[str, Method | None] = {}
    for pattern in exclude:
        for name in _matching(pattern, known, "quantization.exclude"):
            chosen.setdefault(name, None)
    for override in overrides:
        for name in _matching(override.modules, linears, "quantization.overrides"):
            chosen.setdefault(name, override.method)
    assigned = {name: chosen.get(name, method) for name in linears}
    found = {name: own for name, own in assigned.items() if own is not None}
    if not found and (method is not None or any(override.method for override in overrides)):
        raise QuantizeError(
            "every linear of the model is excluded",
            where="quantization.exclude",
            fix="exclude less, or set method: none",
        )
    return found


def _matching(pattern: str, known: Sequence[str], where: str) -> list[str]:
    """The names that a pattern matches, at least one."""
    found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        nearest = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)[0]
        raise QuantizeError(
            f"{pattern!r} matches no linear of the model",
            where=where,
            fix=f"the nearest name is {nearest}; patterns such as model.layers.0.* work too",
        )
    return found


def check_shapes(spec: ModelSpec, methods: Mapping[str, Method]) -> None:
    """Raise one QuantizeError that names every linear whose shape its stored form cannot hold."""
    shapes = linear_kinds(spec)
    problems: dict[str, None] = {}
    for full_name, method in methods.items():
        name = linear_kind(full_name.split(".", 3)[3])
        rows, columns = shapes[name]
        group = method.scheme.group_size
        if group is None:
            continue
        if group < 1:
            raise QuantizeError(
                f"a group size of {group} is not possible", where="quantization.group_size", fix="use 128"
            )
        if columns % group:
            problems[f"{name} has {columns} input channels, which groups of {group} do not divide"] = None
        if rows % 2:
            problems[f"{name} has {rows} output channels, an odd number"] = None
    if problems:
        raise QuantizeError(
            "the linears do not divide into groups",
            where="quantization.group_size",
            why="; ".join(problems),
            fix="choose a group size that divides them (128 or 64), or exclude these linears",
        )
