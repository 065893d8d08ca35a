"""Round-to-nearest weights as `Method`s, in 8 and in 4 bits. They look at no activations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from quantize.algorithms.integer import GridSpec, encode_groups, fit_grid
from quantize.formats.base import INT8_WO, W4A16_AWQ, LinearScheme
from quantize.linear import QuantizedLinear
from quantize.methods.activations import weight_errors
from quantize.methods.base import Group, QuantizedGroup


@dataclass(frozen=True)
class Int8WeightOnly:
    """8-bit weights, a scale for each output channel; 16-bit activations."""

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(INT8_WO, bits=8)

    @property
    def needs_calibration(self) -> bool:
        """It does not look at activations."""
        return False

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "int8_wo"}

    def observe(self, in_features: int, seed: int, device: torch.device) -> None:
        """Nothing: see `needs_calibration`."""

    def quantize(self, group: Group, statistics: None) -> QuantizedGroup:
        """Round to nearest."""
        return _nearest(group, None, bits=8)


@dataclass(frozen=True)
class Int4WeightOnly:
    """4-bit weights in groups; 16-bit activations.

    Stored as AWQ's are, with a scale of ones where the form wants one: what ModelOpt does, and the one int4
    that every runtime reads.

    Args:
        group_size: consecutive input channels that share a scale.
        symmetric: whether codes are signed; else each group has a zero point.
    """

    group_size: int = 128
    symmetric: bool = True

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(W4A16_AWQ, self.group_size, zero_point=not self.symmetric)

    @property
    def needs_calibration(self) -> bool:
        """It does not look at activations."""
        return False

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "int4_wo", **asdict(self)}

    def observe(self, in_features: int, seed: int, device: torch.device) -> None:
        """Nothing: see `needs_calibration`."""

    def quantize(self, group: Group, statistics: None) -> QuantizedGroup:
        """Round to nearest."""
        return _nearest(group, self.group_size, bits=4, symmetric=self.symmetric)


def _nearest(group: Group, group_size: int | None, *, bits: int, symmetric: bool = True) -> QuantizedGroup:
    """Every weight rounded to nearest, with a scale for `group_size` channels, or for each row if None."""
    linears = {}
    for name, weight_OI in group.weights.items():
        columns, dtype = weight_OI.shape[1], weight_OI.dtype
        exact_OI = weight_OI.float()
        grid = fit_grid(exact_OI, GridSpec(group_size or columns, dtype, bits, symmetric))
        linears[name] = QuantizedLinear(
            encode_groups(exact_OI, grid),
            grid.scales,
            bits=bits,
            zero_points=grid.zero_points,
            pre_quant_scale=weight_OI.new_ones(columns) if group.pre_quant_scale and group_size else None,
            bias=group.biases.get(name),
        )
    return QuantizedGroup(linears, report=weight_errors(group.weights, linears))
