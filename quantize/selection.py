"""Which linears of a model are quantized, by which method, and whether their shapes allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantize.methods.base import Method
from toolchain.errors import QuantizeError
from toolchain.model.families import linear_kind, linear_kinds
from toolchain.model.selection import choose
from toolchain.model.spec import ModelSpec


@dataclass(frozen=True)
class Override:
    """Another method for some linears.

    Args:
        modules: a full name, or a glob pattern of full names.
        method: None leaves them as they are.
    """

    modules: str
    method: Method | None


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
        QuantizeError: a pattern that matches no linear, or one that never is quantized; patterns that
            leave nothing to quantize.
    """
    assigned = choose(spec, method, None, exclude, [(own.modules, own.method) for own in overrides])
    found = {name: own for name, own in assigned.items() if own is not None}
    if not found and (method is not None or any(override.method for override in overrides)):
        raise QuantizeError(
            "every linear of the model is excluded",
            where="quantization.exclude",
            fix="exclude less, or set method: none",
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
