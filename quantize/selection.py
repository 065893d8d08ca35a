"""Which linears of a model are quantized, and whether their shapes allow it."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from toolchain.errors import QuantizeError
from toolchain.model.families import layer_prefix, linear_shapes
from toolchain.model.spec import ModelSpec

ALWAYS_EXCLUDED = ("lm_head", "model.embed_tokens")
"""TensorRT-LLM has no 4-bit form of these; ModelOpt lists them in this order."""


def excluded_modules(spec: ModelSpec, patterns: Sequence[str]) -> tuple[str, ...]:
    """The full names of the modules that stay as they are: `ALWAYS_EXCLUDED`, then what `patterns` match.

    Args:
        spec: the model.
        patterns: names or glob patterns of full names.

    Raises:
        QuantizeError: a pattern that matches no linear; one that leaves nothing to quantize.
    """
    linears = [
        layer_prefix(layer) + name for layer in range(spec.num_hidden_layers) for name in linear_shapes(spec)
    ]
    known = [*ALWAYS_EXCLUDED, *linears]
    matched: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(known, pattern)
        if not found:
            nearest = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)[0]
            raise QuantizeError(
                f"{pattern!r} matches no linear of the model",
                where="quantization.exclude",
                fix=f"the nearest name is {nearest}; patterns such as model.layers.0.* work too",
            )
        matched.update(found)
    if matched.issuperset(linears):
        raise QuantizeError(
            "every linear of the model is excluded",
            where="quantization.exclude",
            fix="exclude less, or set method: none",
        )
    return (*ALWAYS_EXCLUDED, *(name for name in linears if name in matched))


def check_shapes(spec: ModelSpec, group_size: int, excluded: Sequence[str]) -> None:
    """Raise one QuantizeError that names every linear whose shape the 4-bit form cannot hold."""
    if group_size < 1:
        raise QuantizeError(
            f"a group size of {group_size} is not possible", where="quantization.group_size", fix="use 128"
        )
    left_alone = set(excluded)
    problems = []
    for name, (rows, columns) in linear_shapes(spec).items():
        if all(layer_prefix(layer) + name in left_alone for layer in range(spec.num_hidden_layers)):
            continue
        if columns % group_size:
            problems.append(f"{name} has {columns} input channels")
        if rows % 2:
            problems.append(f"{name} has {rows} output channels, an odd number")
    if problems:
        raise QuantizeError(
            f"the linears do not divide into groups of {group_size}",
            where="quantization.group_size",
            why="; ".join(problems),
            fix="choose a group size that divides them (128 or 64), or exclude these linears",
        )
