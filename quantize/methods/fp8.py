"""FP8 as `Method`s: one scale for each tensor, or one for each output channel and token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quantize.algorithms.fp8 import amax_scale, to_e4m3
from quantize.formats.base import FP8, FP8_ROWWISE, LinearScheme
from quantize.linear import QuantizedLinear
from quantize.methods.activations import ActivationStatistics, output_errors, weight_errors
from quantize.methods.base import Group, QuantizedGroup


@dataclass(frozen=True)
class Fp8:
    """FP8 weights and activations, a static scale for each.

    The linears of a group share both scales. They read one input, so its scale is theirs in any case. Engines
    fuse their weights into one matrix with one scale: given several, they round the weights once more, to the
    largest. So the largest it is from the start; it costs nothing, since E4M3 is as precise with one scale as
    with another.
    """

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(FP8, bits=8)

    @property
    def needs_calibration(self) -> bool:
        """It looks at activations."""
        return True

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "fp8"}

    def observe(self, in_features: int, seed: int, device: torch.device) -> ActivationStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return ActivationStatistics(in_features, seed, device)

    def quantize(self, group: Group, statistics: ActivationStatistics) -> QuantizedGroup:
        """Scale by the largest magnitude, and round."""
        input_scale = amax_scale(statistics.amax.amax())
        scale = amax_scale(torch.stack([weight.abs().amax() for weight in group.weights.values()]).amax())
        linears = {
            name: QuantizedLinear(
                to_e4m3(weight_OI.float() / scale),
                scale.view(1, 1),
                bits=8,
                input_scale=input_scale,
                bias=group.biases.get(name),
            )
            for name, weight_OI in group.weights.items()
        }
        errors = output_errors(group.weights, linears, FP8, statistics.sample)
        return QuantizedGroup(linears, report=errors)


@dataclass(frozen=True)
class Fp8Rowwise:
    """FP8 weights with a scale for each output channel; activations get one for each token as they come."""

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(FP8_ROWWISE, bits=8)

    @property
    def needs_calibration(self) -> bool:
        """The scales of activations are dynamic."""
        return False

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "fp8_rowwise"}

    def observe(self, in_features: int, seed: int, device: torch.device) -> None:
        """Nothing: see `needs_calibration`."""

    def quantize(self, group: Group, statistics: None) -> QuantizedGroup:
        """Scale each row by its largest magnitude, and round."""
        linears = {}
        for name, weight_OI in group.weights.items():
            scales_O1 = amax_scale(weight_OI.abs().amax(dim=1, keepdim=True))
            codes_OI = to_e4m3(weight_OI.float() / scales_O1)
            linears[name] = QuantizedLinear(codes_OI, scales_O1, bits=8, bias=group.biases.get(name))
        return QuantizedGroup(linears, report=weight_errors(group.weights, linears))
