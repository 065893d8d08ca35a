"""GPTQ W4A16 as a `Method`, alone and after AWQ's scaling."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from quantize.awq import quantize_scaled
from quantize.awq_method import exact_scaling, searched_scaling
from quantize.candidates import Candidate, Scaling, best_of, unscaled
from quantize.formats.base import W4A16_AWQ, LinearScheme
from quantize.gptq import Feedback, error_feedback, round_with_feedback
from quantize.method import Group, QuantizedGroup
from quantize.statistics import GramStatistics, InputStatistics


@dataclass(frozen=True)
class Gptq:
    """4-bit weights, symmetric, in groups, rounded with error feedback; 16-bit activations.

    The stored form is AWQ's, with a scale of ones where it wants one.

    Args:
        group_size: consecutive input channels that share a scale.
        clip: whether to search for each group's range.
        act_order: whether the columns of the largest inputs are rounded first.
        damp: what is added to the diagonal of the Gram matrix, as a part of its mean.
    """

    group_size: int = 128
    clip: bool = True
    act_order: bool = True
    damp: float = 0.01

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(W4A16_AWQ, self.group_size)

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
        return best_of(group, statistics.inputs, self.candidates(group, statistics, unscaled(group)))

    def candidates(self, group: Group, statistics: GramStatistics, scaling: Scaling) -> Iterator[Candidate]:
        """Plain rounding, and rounding with feedback of the weights scaled by `scaling`."""
        yield Candidate(
            unscaled(group), partial(quantize_scaled, blocks_GII=None, group_size=self.group_size)
        )
        feedback = error_feedback(statistics.gram, scaling.scale, damp=self.damp, act_order=self.act_order)
        round_weight = partial(_round, feedback=feedback, group_size=self.group_size)
        yield Candidate(scaling, partial(round_weight, blocks_GII=None))
        if self.clip:
            yield Candidate(scaling, partial(round_weight, blocks_GII=statistics.inputs.blocks))


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
        return exact_scaling(group, statistics)

    def quantize(self, group: Group, statistics: GramStatistics) -> QuantizedGroup:
        """Search the scale as AWQ does, and round with feedback; never worse than plain rounding."""
        scaling = searched_scaling(group, statistics.inputs)
        candidates = self.rounding.candidates(group, statistics, scaling)
        return best_of(group, statistics.inputs, candidates)


def _round(
    weight_OI: Tensor, scale_I: Tensor, *, blocks_GII: Tensor | None, group_size: int, feedback: Feedback
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`quantize_scaled` with the codes chosen by feedback."""
    _, scales_OG, ratios_OG = quantize_scaled(weight_OI, scale_I, blocks_GII, group_size)
    codes_OI = round_with_feedback(weight_OI.float() * scale_I, scales_OG, feedback)
    return codes_OI, scales_OG, ratios_OG
