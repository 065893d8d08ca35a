"""What the quantized weights of a recipe will take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import TYPE_CHECKING

from toolchain.errors import PlanError
from toolchain.model.families import layer_prefix, linear_shapes
from toolchain.model.spec import ModelSpec
from toolchain.plan import memory
from toolchain.plan.memory import MethodBytes, WeightBytes
from toolchain.plan.quantization import Storage, defaults, published_storage, storages
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
        assigned = storages(spec, quant, quant.method)
        stored = memory.weight_bytes(spec, others=assigned)
        return stored, memory.bytes_by_method(spec, assigned)
    choices = [storages(spec, quant, method) for method in defaults(quant)]
    largest, smallest = (
        choose(
            (memory.weight_bytes(spec, others=choice) for choice in choices), key=lambda found: found.total
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


def planned_storages(spec: ModelSpec, quant: Quantization) -> dict[str, Storage]:
    """How each linear will be stored, by full name; under a search, as its largest candidate would."""
    if not quant.methods:
        own = published_storage(spec.quantization)
        return {
            layer_prefix(layer) + name: own
            for layer in range(spec.num_hidden_layers)
            for name in linear_shapes(spec, layer)
        }
    choices = [storages(spec, quant, method) for method in defaults(quant)]
    return max(choices, key=lambda choice: memory.weight_bytes(spec, others=choice).total)


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
