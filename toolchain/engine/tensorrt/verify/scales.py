"""The scales of activations and of the KV cache, which no sum of products would betray."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from toolchain.model.families import linear_groups
from toolchain.model.spec import ModelSpec

CACHE = ("k_cache", "v_cache")
"""The names of the cache's scales among those of linears."""


def scale_error(spec: ModelSpec, layer: int, got: Mapping[str, float], source: Mapping[str, Tensor]) -> float:
    """How far the scales of a rank's layer are from the source's, relative.

    An engine has one scale for linears that it fuses, for all experts, and for keys and values: the largest,
    so a scale may be anything from the source's own to the largest among those that read the same.

    Args:
        spec, layer: which layer.
        got: of the rank, by linear, and by `CACHE`.
        source: the same of the source; what it lacks is not compared.
    """
    together = {CACHE[0]: "cache", CACHE[1]: "cache"}
    for group in linear_groups(spec, layer):
        together |= dict.fromkeys(group.members, group.kind)
    largest: dict[str, float] = {}
    for name, value in source.items():
        largest[together[name]] = max(float(value), largest.get(together[name], 0.0))
    worst = 0.0
    for name, scale in got.items():
        if name in source and scale > 0:
            worst = max(worst, float(source[name]) / scale - 1, scale / largest[together[name]] - 1)
    return worst
