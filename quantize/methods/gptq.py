"""GPTQ W4A16 as a `Method`, alone and after AWQ's scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quantize.algorithms.awq import quantize_scaled, scaled_grid
from quantize.algorithms.gptq import Feedback, error_feedback, round_with_feedback
from quantize.algorithms.integer import Grid, GridSpec
from quantize.formats.base import W4A16_AWQ, LinearScheme
from quantize.methods.awq import exact_scaling, grid_spec, searched_scaling
from quantize.methods.base import Group, QuantizedGroup
from quantize.methods.candidates import Candidate, Scaling, best_of, unscaled
from quantize.methods.statistics import GramStatistics, InputStatistics


@dataclass(frozen=True)
class Gptq:
    """4-bit weights in groups, rounded with error feedback; 16-bit activations.

    The stored form is AWQ's, with a scale of ones where it wants one.

    Args:
        group_size: consecutive input channels that share a scale.
        clip: whether to search for each group's range.
        act_order: whether the columns of the largest inputs are rounded first.
        damp: what is added to the diagonal of the Gram matrix, as a part of its mean.
        symmetric: whether codes are signed; else each group has a zero point.
    """

    group_size: int = 128
    clip: bool = True
    act_order: bool = True
    damp: float = 0.01
    symmetric: bool = True

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(W4A16_AWQ, self.group_size, zero_point=not self.symmetric)

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "gptq", **asdict(self)}

    @property
    def needs_calibration(self) -> bool:
        """It looks at activations."""
        return True

    def observe(self, in_features: int, seed: int, device: torch.device) -> GramStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return GramStatistics(in_features, self.group_size, seed, device)

    def quantize(self, group: Group, statistics: GramStatistics) -> QuantizedGroup:
        """Round with feedback; never worse than plain rounding on the statistics."""
        spec = grid_spec(group, self.group_size, self.symmetric)
        return best_of(group, statistics.inputs, self.candidates(spec, group, statistics, unscaled(group)))

    def candidates(
        self, spec: GridSpec, group: Group, statistics: GramStatistics, scaling: Scaling
    ) -> Iterator[Candidate]:
        """Plain rounding, and rounding with feedback of the weights scaled by `scaling`."""
        yield Candidate(unscaled(group), partial(quantize_scaled, blocks_GII=None, spec=spec))
        feedback = error_feedback(statistics.gram, scaling.scale, damp=self.damp, act_order=self.act_order)
        blocks_GII = statistics.inputs.blocks if self.clip else None
        yield Candidate(scaling, partial(_round, feedback=feedback, blocks_GII=blocks_GII, spec=spec))


@dataclass(frozen=True)
class AwqGptq:
    """AWQ's scaling of the input channels, then GPTQ's rounding of the scaled weights.

    Args:
        rounding: how the scaled weights are rounded.
    """

    rounding: Gptq = field(default_factory=Gptq)

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return self.rounding.scheme

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return self.rounding.parameters() | {"method": "awq_gptq"}

    @property
    def needs_calibration(self) -> bool:
        """It looks at activations."""
        return True

    def observe(self, in_features: int, seed: int, device: torch.device) -> GramStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return self.rounding.observe(in_features, seed, device)

    def fold(self, group: Group, statistics: InputStatistics) -> Scaling | None:
        """As in `Folding`."""
        spec = grid_spec(group, self.rounding.group_size, self.rounding.symmetric)
        return exact_scaling(group, statistics, spec)

    def quantize(self, group: Group, statistics: GramStatistics) -> QuantizedGroup:
        """Search the scale as AWQ does, and round with feedback; never worse than plain rounding."""
        spec = grid_spec(group, self.rounding.group_size, self.rounding.symmetric)
        scaling = searched_scaling(group, statistics.inputs, spec)
        candidates = self.rounding.candidates(spec, group, statistics, scaling)
        return best_of(group, statistics.inputs, candidates)


def _round(
    weight_OI: Tensor, scale_I: Tensor, *, blocks_GII: Tensor | None, spec: GridSpec, feedback: Feedback
) -> tuple[Tensor, Grid, Tensor | None]:
    """`quantize_scaled` with the codes chosen by feedback."""
    scaled_OI = weight_OI.float() * scale_I
    grid, ratios = scaled_grid(scaled_OI, scale_I, blocks_GII, spec)
    return round_with_feedback(scaled_OI, grid, feedback), grid, ratios
