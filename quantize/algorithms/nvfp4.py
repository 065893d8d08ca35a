"""NVFP4 on tensors alone: E2M1 codes, an E4M3 scale for each block of 16 inputs, a float32 scale for all.

A block's scale brings its largest magnitude to 6, the largest code. Between 4 and 6 there is no other code,
though, so a block whose values lie close below its largest is better off with the largest at 4, or clipped
("four over six"): given the blocks' second moments, the scale that loses least of the output is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.algorithms.fp8 import E4M3, amax_scale, to_e4m3
from quantize.algorithms.integer import in_groups, row_blocks
from quantize.simulate import E2M1_MAX, E4M3_MAX, FP4_BLOCK, round_e2m1

_SMALLEST_SCALE = 2.0**-9  # the smallest E4M3 number above 0
# Scales that are tried, relative to that which brings the largest magnitude to 6.
_FACTORS = (1.0, 1.5)


def global_scale(amax: Tensor) -> Tensor:
    """float32: the scale of all blocks' scales, for values of magnitudes up to `amax`."""
    return amax_scale(amax, E2M1_MAX * E4M3_MAX)


def block_scales(amax_OG: Tensor, scale: Tensor, factor: float = 1.0) -> Tensor:
    """The E4M3 scales of blocks of magnitudes up to `amax`, as float32; 1 for a block of zeros.

    Args:
        amax_OG: float32, any shape.
        scale: the `global_scale`.
        factor: multiplies them, as far as E4M3 reaches.
    """
    wanted_OG = amax_OG / (E2M1_MAX * scale) * factor
    scales_OG = to_e4m3(wanted_OG.clamp_min(_SMALLEST_SCALE)).float()
    return torch.where(amax_OG == 0, torch.ones_like(scales_OG), scales_OG)


def quantize_blocks(
    weight_OI: Tensor, scale: Tensor, blocks_GII: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Round a weight.

    Args:
        weight_OI: [out, in]; `in` is a multiple of 16.
        scale: the `global_scale`.
        blocks_GII: float32 [in / 16, 16, 16], the diagonal blocks of X^T X, to search the blocks' scales;
            None to bring each block's largest magnitude to 6.

    Returns:
        codes, E2M1 numbers as float8_e4m3fn [out, in], and the blocks' scales, E4M3 numbers as float32
        [out, in / 16].
    """
    codes, scales = [], []
    for rows_OI in row_blocks(weight_OI):
        groups_OGI = in_groups(rows_OI, FP4_BLOCK)
        amax_OG = groups_OGI.abs().amax(dim=2)
        scales_OG = block_scales(amax_OG, scale)
        if blocks_GII is not None:
            scales_OG = _searched(groups_OGI, amax_OG, scale, blocks_GII)
        codes.append(_encode(groups_OGI, scales_OG, scale).flatten(1))
        scales.append(scales_OG)
    return torch.cat(codes), torch.cat(scales)


def _encode(groups: Tensor, scales: Tensor, scale: Tensor) -> Tensor:
    """Codes of blocks [..., 16], whose scales are [...]."""
    steps = (scales * scale).clamp_min_(torch.finfo(torch.float32).tiny)
    # No zero has a sign, where it is not a negative number that was rounded.
    return round_e2m1(groups / steps.unsqueeze(-1)).to(E4M3)


def _decode(codes: Tensor, scales: Tensor, scale: Tensor) -> Tensor:
    """The values of codes [..., 16]."""
    return codes.float() * (scales * scale).unsqueeze(-1)


def _searched(groups_OGI: Tensor, amax_OG: Tensor, scale: Tensor, blocks_GII: Tensor) -> Tensor:
    """Of the scales that are tried, those that lose least of the output: e^T G_bb e, e being the change."""
    best_OG = torch.full_like(amax_OG, torch.inf)
    chosen_OG = torch.ones_like(amax_OG)
    for factor in _FACTORS:
        scales_OG = block_scales(amax_OG, scale, factor)
        rounded_OGI = _decode(_encode(groups_OGI, scales_OG, scale), scales_OG, scale)
        change_GOI = rounded_OGI.sub_(groups_OGI).transpose(0, 1)
        loss_OG = (torch.bmm(change_GOI, blocks_GII) * change_GOI).sum(dim=2).t()
        better_OG = loss_OG < best_OG
        best_OG = torch.where(better_OG, loss_OG, best_OG)
        chosen_OG = torch.where(better_OG, scales_OG, chosen_OG)
    return chosen_OG
