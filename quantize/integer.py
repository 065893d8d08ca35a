"""The symmetric integer grid: groups of consecutive input channels that share one scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# How many elements of a weight are worked on at a time: small enough for the processor's cache.
_CHUNK = 1 << 18


def row_blocks(weight_OI: Tensor) -> Iterator[Tensor]:
    """The weight [out, in] in float32, as many rows at a time as suit the processor's cache."""
    rows = max(1, _CHUNK // weight_OI.shape[1])
    for first in range(0, weight_OI.shape[0], rows):
        yield weight_OI[first : first + rows].float()


def in_groups(matrix_OI: Tensor, group_size: int) -> Tensor:
    """A view [out, groups, group_size] of a matrix [out, in]."""
    return matrix_OI.view(matrix_OI.shape[0], -1, group_size)


def group_scales(amax: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """float32 scales for groups whose largest magnitudes are `amax` (any shape).

    They are rounded to `dtype` first, the type in which TensorRT-LLM multiplies by them, so that every
    runtime sees the weights that the search saw. They are normal numbers of `dtype`, and 1 for a group
    of zeros.
    """
    amax = amax.float()
    scales = (amax / (2 ** (bits - 1) - 1)).clamp_min_(torch.finfo(dtype).tiny).to(dtype).float()
    return torch.where(amax == 0, torch.ones_like(scales), scales)


def quantize_groups(
    weight_OI: Tensor, group_size: int, dtype: torch.dtype, *, bits: int = 4, ratios: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round a weight to the nearest codes of the symmetric grid.

    Args:
        weight_OI: [out, in]; `in` is a multiple of `group_size`.
        group_size: consecutive input channels that share a scale.
        dtype: the type whose values the scales may take.
        bits: width of a code.
        ratios: [out, in / group_size]; what part of its largest magnitude each group spans (clipping).

    Returns:
        codes int8 [out, in] and scales float32 [out, in / group_size].
    """
    groups_OGI = in_groups(weight_OI.float().contiguous(), group_size)
    amax_OG = groups_OGI.abs().amax(dim=2)
    scales_OG = group_scales(amax_OG if ratios is None else amax_OG * ratios, bits, dtype)
    codes_OGI = grid_codes(groups_OGI, scales_OG.unsqueeze(2), bits)
    return codes_OGI.to(torch.int8).flatten(1), scales_OG


def round_to_grid(groups_OGI: Tensor, scales_OG: Tensor, bits: int) -> Tensor:
    """What the groups [out, groups, group_size] become on the grid of `scales_OG`, float32, same shape."""
    scales_OG1 = scales_OG.unsqueeze(2)
    return grid_codes(groups_OGI, scales_OG1, bits).mul_(scales_OG1)


def grid_codes(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    """The nearest codes of `values` on the grid of `scales` (shapes that broadcast), as floats."""
    top = 2 ** (bits - 1) - 1
    return (values / scales).round_().clamp_(-top - 1, top)
