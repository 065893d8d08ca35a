"""What the quantized weights of a recipe will take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from toolchain.errors import PlanError
from toolchain.model.families import layer_prefix, linear_shapes
from toolchain.model.selection import modules
from toolchain.model.spec import ModelSpec
from toolchain.plan import memory
from toolchain.plan.memory import MethodBytes, WeightBytes
from toolchain.plan.quantization import (
    LayerPattern,
    Storage,
    defaults,
    patterns,
    published_storage,
    quantization_problems,
    storages,
    uniform_patterns,
)
from toolchain.recipe.section import size_bytes

if TYPE_CHECKING:
    from toolchain.recipe.quantization import Quantization


def quantized_bytes(
    spec: ModelSpec, quant: Quantization, notes: list[str]
) -> tuple[WeightBytes, dict[str, MethodBytes]]:
    """Bytes of the quantized weights, by method too; under a search, what its budget lets them be.

    Args:
        spec: the model.
        quant: the recipe's section; some method of it quantizes.
        notes: grows by what a user should know of them.

    Raises:
        PlanError: the budget of a search cannot be met.
    """
    if spec.tie_word_embeddings:
        table = memory.human_bytes(memory.weight_bytes(spec).embedding)
        notes.append(
            f"lm_head is the embedding table ({table}), which stays in {spec.dtype} whatever `exclude` says"
        )
    if quant.search is None:
        layers = patterns(spec, quant, quant.method)
        return memory.stored_bytes(spec, layers), memory.bytes_by_method(spec, layers)
    choices = [storages(spec, quant, method) for method in defaults(quant)]
    largest, smallest = (
        choose(
            (memory.stored_bytes(spec, patterns(spec, quant, method)) for method in defaults(quant)),
            key=lambda found: found.total,
        )
        for choose in (max, min)
    )
    # What exclusions and overrides decide is the same whatever the search does.
    fixed = {name for name, own in choices[0].items() if own == choices[1][name]}
    kept, weights = _share(spec, choices[0], fixed)
    wanted = largest.layer_linears
    if quant.search.max_bits is not None:
        wanted = kept + int(weights * quant.search.max_bits / 8)
    elif quant.search.max_size is not None:
        wanted = size_bytes(quant.search.max_size) - (largest.total - largest.layer_linears)
    if wanted < smallest.layer_linears:
        least = 8 * (smallest.layer_linears - kept) / max(1, weights)
        raise PlanError(
            f"the budget cannot be met: the smallest model has {memory.human_bytes(smallest.total)}, "
            f"{least:.2f} bits a weight of the linears searched",
            where="quantization.search",
            fix="raise the budget, or add a smaller method to the candidates",
        )
    share = min(1.0, wanted / largest.layer_linears)
    linears = tuple(int(count * share) for count in largest.linears)
    notes.append("the search decides which linears get which method; its budget is what is planned for")
    return replace(largest, linears=linears), {}


@dataclass(frozen=True)
class PlannedWeights:
    """The weights that a recipe's quantization makes of a model, whatever they are split over.

    Args:
        source, stored: bytes before and after quantization, on disk.
        by_method: the linears of each method; empty where nothing is quantized or a search will decide.
        assigned: how each linear is stored, by full name; under a search, as its largest candidate would.
        layers: the same, layer by layer.
        searched: that of each candidate of a search; without one of the only one.
        scale: bytes of the linears in `stored` over those of `assigned`: below 1 where a search has a budget.
        problems: why it cannot be; empty when it can.
        notes: what a user should know.
    """

    source: WeightBytes
    stored: WeightBytes
    by_method: Mapping[str, MethodBytes]
    assigned: Mapping[str, Storage]
    layers: Sequence[LayerPattern]
    searched: Sequence[Sequence[LayerPattern]]
    scale: float
    problems: Sequence[PlanError]
    notes: Sequence[str]


@lru_cache(maxsize=32)
def planned_weights(spec: ModelSpec, quant: Quantization, flavour: str) -> PlannedWeights:
    """The weights of `spec` by the recipe's section; kept, as a plan with `auto` asks once for each split."""
    notes: list[str] = []
    source = memory.weight_bytes(spec, *published_storage(spec.quantization))
    stored, by_method = source, dict[str, MethodBytes]()
    own = published_storage(spec.quantization)
    choices: list[Mapping[str, Storage]] = [dict.fromkeys(modules(spec)[1], own)]
    searched: list[Sequence[LayerPattern]] = [uniform_patterns(spec, own)]
    problems: list[PlanError] = []
    try:
        problems += quantization_problems(spec, quant, flavour)
        if quant.methods:
            stored, by_method = quantized_bytes(spec, quant, notes)
            choices = [storages(spec, quant, method) for method in defaults(quant)]
            searched = [patterns(spec, quant, method) for method in defaults(quant)]
    except PlanError as error:  # a pattern that means nothing: no linear's method is known
        problems.append(error)
    full = [memory.stored_bytes(spec, layers).layer_linears for layers in searched]
    largest = full.index(max(full))
    return PlannedWeights(
        source=source,
        stored=stored,
        by_method=by_method,
        assigned=choices[largest],
        layers=searched[largest],
        searched=searched,
        scale=stored.layer_linears / full[largest],
        problems=problems,
        notes=notes,
    )


def _share(spec: ModelSpec, assigned: Mapping[str, Storage], fixed: Set[str]) -> tuple[int, int]:
    """Bytes of the linears in `fixed`, and weights of all others."""
    element = memory.DTYPE_BYTES[spec.dtype]
    kept = weights = 0
    for layer in range(spec.num_hidden_layers):
        for name, shape in linear_shapes(spec, layer).items():
            full = layer_prefix(layer) + name
            if full in fixed:
                kept += memory.linear_bytes(shape, element, assigned[full])
            else:
                weights += math.prod(shape)
    return kept, weights
