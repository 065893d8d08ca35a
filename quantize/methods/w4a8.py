"""AWQ W4A8 as a `Method`: AWQ's 4-bit weights, which kernels bring into FP8, and FP8 activations."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from quantize.algorithms.fp8 import amax_scale
from quantize.formats.base import W4A8_AWQ, LinearScheme
from quantize.linear import QuantizedLinear
from quantize.methods.activations import ActivationStatistics, output_errors
from quantize.methods.awq import Awq
from quantize.methods.base import Group, QuantizedGroup
from quantize.methods.candidates import Scaling
from quantize.methods.statistics import InputStatistics


class AwqActivationStatistics:
    """What AWQ asks of a group's inputs, and what a static scale of them does."""

    def __init__(self, inputs: InputStatistics, activations: ActivationStatistics) -> None:
        self.inputs, self.activations = inputs, activations

    def update(self, x_TI: Tensor) -> None:
        """Take in rows x [tokens, in] of any float dtype."""
        self.inputs.update(x_TI)
        self.activations.update(x_TI)


@dataclass(frozen=True)
class W4A8Awq:
    """4-bit weights in groups, symmetric, scaled and clipped by AWQ; FP8 activations with a static scale.

    The linears of a group share `input_scale` and `weight_scale_2`, as fused kernels have one of each.

    Args:
        weights: how the weights are quantized.
    """

    weights: Awq = field(default_factory=Awq)

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(W4A8_AWQ, self.weights.group_size)

    @property
    def needs_calibration(self) -> bool:
        """It looks at activations."""
        return True

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return self.weights.parameters() | {"method": "w4a8_awq"}

    def observe(self, in_features: int, seed: int, device: torch.device) -> AwqActivationStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return AwqActivationStatistics(
            self.weights.observe(in_features, seed, device), ActivationStatistics(in_features, seed, device)
        )

    def fold(self, group: Group, statistics: InputStatistics) -> Scaling | None:
        """As in `Folding`."""
        return self.weights.fold(group, statistics)

    def quantize(self, group: Group, statistics: AwqActivationStatistics) -> QuantizedGroup:
        """Quantize the weights as AWQ does, then scale the inputs that this leaves."""
        answer = self.weights.quantize(group, statistics.inputs)
        first = next(iter(answer.linears.values()))
        # What AWQ's scale makes of the input, wherever it went.
        factor_I = torch.ones_like(statistics.activations.amax)
        if answer.norm is not None and group.norm is not None:
            norm_I = group.norm.float()
            factor_I = torch.where(norm_I == 0, factor_I, answer.norm.float() / norm_I)
        elif first.pre_quant_scale is not None:
            factor_I = first.pre_quant_scale.float()
        elif answer.source_scale is not None and group.source_rows is not None:
            factor_I = 1 / answer.source_scale[group.source_rows]
        input_scale = amax_scale((statistics.activations.amax * factor_I.abs()).amax())
        largest = torch.stack([_largest(linear) for linear in answer.linears.values()]).amax()
        scale_2 = amax_scale(largest)
        linears = {
            name: replace(linear, input_scale=input_scale, weight_scale_2=scale_2)
            for name, linear in answer.linears.items()
        }
        # A scale that went elsewhere is judged as if it stood beside the linear.
        judged = {name: replace(linear, pre_quant_scale=factor_I) for name, linear in linears.items()}
        errors = output_errors(group.weights, judged, W4A8_AWQ, statistics.activations.sample)
        report = {name: {**answer.report[name], **facts} for name, facts in errors.items()}
        return replace(answer, linears=linears, report=report)


def _largest(linear: QuantizedLinear) -> Tensor:
    """The largest magnitude of codes times scales."""
    return replace(linear, pre_quant_scale=None).dequantize().abs().amax()
