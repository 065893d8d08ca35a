"""Which linears of a model a recipe's names and patterns mean."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from typing import TypeVar

from toolchain.errors import LlmbuildError, QuantizeError
from toolchain.model.families import layer_examples, layer_prefix, linear_shapes, routers
from toolchain.model.spec import ModelSpec

ALWAYS_EXCLUDED = ("lm_head", "model.embed_tokens")
"""TensorRT-LLM has no 4-bit form of these; ModelOpt lists them in this order."""

T = TypeVar("T")


def modules(spec: ModelSpec) -> tuple[list[str], list[str]]:
    """Full names: what is never quantized, `ALWAYS_EXCLUDED` and the routers; and all linears."""
    kinds = {spec.is_sparse(layer): layer for layer in layer_examples(spec)}
    gates_of = {kind: routers(spec, layer) for kind, layer in kinds.items()}
    linears_of = {kind: linear_shapes(spec, layer) for kind, layer in kinds.items()}
    gates, linears = [], []
    for layer in range(spec.num_hidden_layers):
        kind, prefix = spec.is_sparse(layer), layer_prefix(layer)
        gates += [prefix + name for name in gates_of[kind]]
        linears += [prefix + name for name in linears_of[kind]]
    return [*ALWAYS_EXCLUDED, *gates], linears


def choose(
    spec: ModelSpec,
    default: T,
    nothing: T,
    exclude: Iterable[str],
    overrides: Iterable[tuple[str, T]],
    error: type[LlmbuildError] = QuantizeError,
) -> dict[str, T]:
    """What is chosen for each linear, by full name, in the order of the model.

    Args:
        spec: the model.
        default: for what no pattern matches.
        nothing: for what is excluded.
        exclude: names or patterns of linears that stay as they are, whatever overrides say.
        overrides: pattern and choice; the first that matches wins.
        error: the class of what is raised.

    Raises:
        error: a pattern that matches nothing, or that asks to quantize what never is.
    """
    always, linears = modules(spec)
    chosen: dict[str, T] = {}
    for pattern in exclude:
        for name in _matching(pattern, [*always, *linears], "quantization.exclude", error):
            chosen.setdefault(name, nothing)
    for pattern, choice in overrides:
        if pattern in always:
            raise _never(spec, pattern, error)
        for name in _matching(pattern, linears, "quantization.overrides", error):
            chosen.setdefault(name, choice)
    return {name: chosen.get(name, default) for name in linears}


def _matching(pattern: str, known: Sequence[str], where: str, error: type[LlmbuildError]) -> list[str]:
    """The names that a pattern matches, at least one."""
    found = [name for name in known if fnmatch.fnmatchcase(name, pattern)]
    if not found:
        nearest = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)[0]
        raise error(
            f"{pattern!r} matches no linear of the model",
            where=where,
            fix=f"the nearest name is {nearest}; patterns such as model.layers.0.* work too",
        )
    return found


def _never(spec: ModelSpec, name: str, error: type[LlmbuildError]) -> LlmbuildError:
    tied = name in ALWAYS_EXCLUDED and spec.tie_word_embeddings
    return error(
        f"{name} cannot be quantized",
        where="quantization.overrides",
        why="lm_head is the embedding table again (tie_word_embeddings), and rows of that are looked up"
        if tied
        else "embedding, output layer and routers stay in the source precision",
        fix="remove the override",
    )
