"""NVFP4 as a `Method`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from quantize.algorithms.nvfp4 import global_scale, quantize_blocks
from quantize.formats.base import NVFP4, LinearScheme
from quantize.linear import QuantizedLinear
from quantize.methods.activations import ActivationStatistics, output_errors
from quantize.methods.base import Group, QuantizedGroup
from quantize.methods.statistics import InputStatistics
from quantize.methods.w4a8 import AwqActivationStatistics
from quantize.simulate import FP4_BLOCK


@dataclass(frozen=True)
class Nvfp4:
    """4-bit floating point weights and activations in blocks of 16.

    The linears of a group share `input_scale` and `weight_scale_2`, as loaders demand.

    Args:
        search: whether to search each block's scale; else its largest magnitude becomes 6, as in ModelOpt.
    """

    search: bool = True

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(NVFP4, FP4_BLOCK)

    @property
    def needs_calibration(self) -> bool:
        """It looks at activations."""
        return True

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "nvfp4", **asdict(self)}

    def observe(self, in_features: int, seed: int, device: torch.device) -> AwqActivationStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return AwqActivationStatistics(
            InputStatistics(in_features, FP4_BLOCK, seed, device),
            ActivationStatistics(in_features, seed, device),
        )

    def quantize(self, group: Group, statistics: AwqActivationStatistics) -> QuantizedGroup:
        """Scale and round."""
        activations = statistics.activations
        input_scale = global_scale(activations.amax.amax())
        scale_2 = global_scale(torch.stack([weight.abs().amax() for weight in group.weights.values()]).amax())
        linears = {}
        for name, weight_OI in group.weights.items():
            codes_OI, scales_OG = quantize_blocks(
                weight_OI, scale_2, statistics.inputs.blocks if self.search else None
            )
            linears[name] = QuantizedLinear(
                codes_OI,
                scales_OG,
                bits=4,
                input_scale=input_scale,
                weight_scale_2=scale_2,
                bias=group.biases.get(name),
            )
        errors = output_errors(group.weights, linears, NVFP4, activations.sample)
        return QuantizedGroup(linears, report=errors)
