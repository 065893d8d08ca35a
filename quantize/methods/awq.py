"""AWQ W4A16 as a `Method`: search, fold and round one group of linears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quantize.algorithms.awq import absorb, candidate_errors, quantize_scaled, search_scale
from quantize.algorithms.integer import GridSpec
from quantize.formats.base import W4A16_AWQ, LinearScheme
from quantize.methods.base import Group, QuantizedGroup
from quantize.methods.candidates import Candidate, Scaling, best_of, unscaled
from quantize.methods.statistics import InputStatistics

# Of the exact scale: weights of float16 stay far from its largest value.
_LARGEST_POWER = 8


@dataclass(frozen=True)
class Awq:
    """4-bit weights in groups; 16-bit activations.

    Args:
        group_size: consecutive input channels that share a scale.
        clip: whether to search for each group's range.
        symmetric: whether codes are signed; else each group has a zero point.
    """

    group_size: int = 128
    clip: bool = True
    symmetric: bool = True

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(W4A16_AWQ, self.group_size, zero_point=not self.symmetric)

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "awq", **asdict(self)}

    @property
    def needs_calibration(self) -> bool:
        """It looks at activations."""
        return True

    def observe(self, in_features: int, seed: int, device: torch.device) -> InputStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return InputStatistics(in_features, self.group_size, seed, device)

    def quantize(self, group: Group, statistics: InputStatistics) -> QuantizedGroup:
        """Search scale and clip on the statistics, and round; never worse than rounding alone."""
        return best_of(group, statistics, self._candidates(group, statistics))

    def fold(self, group: Group, statistics: InputStatistics) -> Scaling | None:
        """As in `Folding`."""
        return exact_scaling(group, statistics, grid_spec(group, self.group_size, self.symmetric))

    def _candidates(self, group: Group, statistics: InputStatistics) -> Iterator[Candidate]:
        spec = grid_spec(group, self.group_size, self.symmetric)
        nearest = partial(quantize_scaled, blocks_GII=None, spec=spec)
        yield Candidate(unscaled(group), nearest)
        scaling = searched_scaling(group, statistics, spec)
        yield Candidate(scaling, nearest)
        if self.clip:
            yield Candidate(scaling, partial(nearest, blocks_GII=statistics.blocks))


def grid_spec(group: Group, group_size: int, symmetric: bool) -> GridSpec:
    """The 4-bit grid of a group's weights, with scales in their dtype."""
    return GridSpec(group_size, next(iter(group.weights.values())).dtype, symmetric=symmetric)


def searched_scaling(group: Group, statistics: InputStatistics, spec: GridSpec) -> Scaling:
    """AWQ's scale of a group's input, put where the group has a place for it; none where there is none.

    It goes into the norm before the group. Where there is no norm (o_proj, down_proj) it becomes the
    linear's pre_quant_scale, which TensorRT-LLM applies to these two in any case. Both are stored in the
    model's dtype; the scale returned is the one that the rounded values leave to the weights. In a form
    without pre_quant_scale, it goes into the linear before in powers of two, which leave its codes alone.
    """
    plain = unscaled(group)
    if group.norm is None and group.shared_scale:
        return plain
    if group.source_rows is not None:
        return _into_source(group, group.source_rows, statistics, spec) or plain
    target = group.norm if group.norm is not None else plain.pre_quant_scale
    if target is None:
        return plain
    search = search_scale(list(group.weights.values()), statistics.magnitude, statistics.sketch, spec)
    folded, scale_I = absorb(target, search.scale)
    if group.norm is not None:
        return Scaling(scale_I, norm=folded, alpha=search.alpha, duo=search.duo)
    return Scaling(scale_I, pre_quant_scale=folded, alpha=search.alpha, duo=search.duo)


def exact_scaling(group: Group, statistics: InputStatistics, spec: GridSpec) -> Scaling | None:
    """AWQ's scale for the norm of a group in powers of two: no product or quotient with it is rounded.

    None where the weights round as well without.
    """
    if group.norm is None:
        return None
    search = search_scale(list(group.weights.values()), statistics.magnitude, statistics.sketch, spec)
    scale_I = _powers_of_two(search.scale.log2())
    if not _helps(scale_I, group, statistics, spec):
        return None
    folded_I, effective_I = absorb(group.norm, scale_I)
    return Scaling(effective_I, norm=folded_I, alpha=search.alpha, duo=search.duo)


def _into_source(
    group: Group, source_I: Tensor, statistics: InputStatistics, spec: GridSpec
) -> Scaling | None:
    """AWQ's scale in powers of two, one for all input channels that come from one channel of the source.

    None where the weights round as well without.
    """
    search = search_scale(list(group.weights.values()), statistics.magnitude, statistics.sketch, spec)
    rows = int(source_I.max()) + 1
    sums_R = torch.zeros(rows, device=source_I.device).index_add_(0, source_I, search.scale.log2())
    scale_R = _powers_of_two(sums_R / source_I.bincount(minlength=rows))
    scale_I = scale_R[source_I]
    if not _helps(scale_I, group, statistics, spec):
        return None
    return Scaling(scale_I, source_scale=scale_R, alpha=search.alpha, duo=search.duo)


def _powers_of_two(exponents: Tensor) -> Tensor:
    return torch.exp2(exponents.round().clamp(-_LARGEST_POWER, _LARGEST_POWER))


def _helps(scale_I: Tensor, group: Group, statistics: InputStatistics, spec: GridSpec) -> bool:
    """Whether the weights round better with the scale than without."""
    choices, weights = [torch.ones_like(scale_I), scale_I], list(group.weights.values())
    plain, scaled = candidate_errors(weights, choices, statistics.sketch, spec)
    return scaled < plain
