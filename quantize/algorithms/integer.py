"""The integer grid: groups of consecutive input channels that share one scale, and perhaps a zero point."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# How many elements of a weight are worked on at a time: on a CPU few enough for its cache.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}


@dataclass(frozen=True)
class Grid:
    """Where codes lie: value = (code - zero point) * scale.

    Args:
        scales: float32, of a shape that broadcasts with the values.
        zero_points: float32 whole numbers of the same shape; None where codes are signed.
        bits: width of a code.
    """

    scales: Tensor
    zero_points: Tensor | None
    bits: int

    def encode(self, values: Tensor) -> Tensor:
        """The nearest codes, as floats: -8..7 for 4 bits, or 0..15 with zero points."""
        codes = (values / self.scales).round_()
        if self.zero_points is None:
            top = 2 ** (self.bits - 1) - 1
            return codes.clamp_(-top - 1, top)
        return codes.add_(self.zero_points).clamp_(0, 2**self.bits - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """What codes stand for; overwrites them."""
        if self.zero_points is not None:
            codes = codes.sub_(self.zero_points)
        return codes.mul_(self.scales)

    def nearest(self, values: Tensor) -> Tensor:
        """What values become."""
        return self.decode(self.encode(values))

    def each(self) -> Grid:
        """The grid of groups [out, groups, group_size] from one of shape [out, groups]."""
        zeros = None if self.zero_points is None else self.zero_points.unsqueeze(-1)
        return Grid(self.scales.unsqueeze(-1), zeros, self.bits)

    def of_columns(self, group_of_column: Tensor) -> Grid:
        """The grid of columns [in, out], each in its group, from one of shape [out, groups]."""
        zeros = None if self.zero_points is None else self.zero_points.t()[group_of_column]
        return Grid(self.scales.t()[group_of_column], zeros, self.bits)

    def stored(self, codes: Tensor) -> Tensor:
        """Codes in the integer type that holds them."""
        return codes.to(torch.int8 if self.zero_points is None else torch.uint8)


@dataclass(frozen=True)
class GridSpec:
    """What kind of grid a weight gets.

    Args:
        group_size: consecutive input channels that share a scale.
        dtype: the type whose values the scales may take: that in which runtimes multiply by them, so that
            every runtime sees the weights that the search saw.
        bits: width of a code.
        symmetric: signed codes around 0; else each group has a zero point.
    """

    group_size: int
    dtype: torch.dtype
    bits: int = 4
    symmetric: bool = True

    def extents(self, groups_OGI: Tensor) -> tuple[Tensor, Tensor]:
        """The lowest and highest value that each group's grid must reach, [out, groups]. 0 is between."""
        if self.symmetric:
            high_OG = groups_OGI.abs().amax(dim=2)
            return -high_OG, high_OG
        return groups_OGI.amin(dim=2).clamp_max_(0), groups_OGI.amax(dim=2).clamp_min_(0)

    def grid(self, low: Tensor, high: Tensor) -> Grid:
        """The grid that spans extents. Scales are normal numbers of the dtype, and 1 for a group of zeros."""
        if self.symmetric:
            return Grid(group_scales(high, self.bits, self.dtype), None, self.bits)
        steps = 2**self.bits - 1
        scales = _storable(divided((high - low).float(), steps), self.dtype)
        zeros = (-low.float() / scales).round_().clamp_(0, steps)
        return Grid(scales, zeros, self.bits)


def row_blocks(weight_OI: Tensor) -> Iterator[Tensor]:
    """The weight [out, in] in float32, as many rows at a time as suit the device."""
    rows = max(1, _CHUNK[weight_OI.device.type] // weight_OI.shape[1])
    for first in range(0, weight_OI.shape[0], rows):
        yield weight_OI[first : first + rows].float()


def in_groups(matrix_OI: Tensor, group_size: int) -> Tensor:
    """A view [out, groups, group_size] of a matrix [out, in]."""
    return matrix_OI.view(matrix_OI.shape[0], -1, group_size)


def sampled_rows(matrix: Tensor, count: int) -> Tensor:
    """`count` rows of a matrix, at random but the same for one height; all where there are fewer."""
    rows = matrix.shape[0]
    if rows <= count:
        return matrix
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(rows))[:count].sort().values
    drawn = drawn.to(matrix.device)
    if matrix.dtype == torch.float8_e4m3fn:  # which cannot be indexed everywhere; its bytes can
        return matrix.view(torch.uint8)[drawn].view(matrix.dtype)
    return matrix[drawn]


def group_scales(amax: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """float32 scales of symmetric grids for groups whose largest magnitudes are `amax` (any shape)."""
    return _storable(divided(amax.float(), 2 ** (bits - 1) - 1), dtype)


def divided(values: Tensor, number: float) -> Tensor:
    """values / number, to the same bits everywhere: a GPU multiplies by the reciprocal of a plain number."""
    return values / values.new_tensor(number)


def _storable(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales rounded to normal numbers of `dtype`; 1 for those that are 0."""
    rounded = scales.clamp_min(torch.finfo(dtype).tiny).to(dtype).float()
    return torch.where(scales == 0, torch.ones_like(rounded), rounded)


def fit_grid(weight_OI: Tensor, spec: GridSpec, ratios_OG: Tensor | None = None) -> Grid:
    """The grid of a weight [out, in], [out, groups]; `ratios_OG` narrows each group's range (clipping)."""
    low_OG, high_OG = spec.extents(in_groups(weight_OI, spec.group_size))
    if ratios_OG is not None:
        low_OG, high_OG = low_OG * ratios_OG, high_OG * ratios_OG
    return spec.grid(low_OG, high_OG)


def encode_groups(weight_OI: Tensor, grid: Grid) -> Tensor:
    """The nearest codes of a weight [out, in] on a grid of shape [out, groups], int8 or uint8."""
    groups_OGI = weight_OI.view(*grid.scales.shape, -1)
    return grid.stored(grid.each().encode(groups_OGI)).flatten(1)


def quantize_groups(
    weight_OI: Tensor, group_size: int, dtype: torch.dtype, *, bits: int = 4, ratios: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round a weight to the nearest codes of the symmetric grid.

    Returns:
        codes int8 [out, in] and scales float32 [out, in / group_size].
    """
    weight_OI = weight_OI.float().contiguous()
    grid = fit_grid(weight_OI, GridSpec(group_size, dtype, bits), ratios)
    return encode_groups(weight_OI, grid), grid.scales
