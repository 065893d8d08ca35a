"""A quantized linear's codes, scales and zero points in the element types that OpenVINO's CPU plugin keeps.

    codes of the linear          constant    private memory at run time (OpenVINO 2026.4, f32 execution)
    int4, symmetric              i4          stays 4 bits
    int4 with zero points        u4          stays 4 bits
    int8, symmetric              i8          stays 8 bits; so do int4 in rows of odd length
    int8 with zero points        u8          stays 8 bits; so do int4 in rows of odd length
    E2M1 (NVFP4)                 f4e2m1      stays 4 bits
    E4M3 (FP8)                   -           none: the plugin has no kernel for it; the weight is f32
    groups of other sizes        -           none: its kernels take 16, multiples of 32, and whole rows

Nothing is rounded: what the graph computes from these constants is `QuantizedLinear.dequantize()` to the
last bit, but for `pre_quant_scale`, which the graph multiplies the activation by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import openvino as ov
import torch
from torch import Tensor

from quantize.formats.packing import pack_fp4
from quantize.linear import QuantizedLinear
from toolchain.engine.openvino.irfile import Chunks

BLOCK = 4 << 20
"""Elements of a weight that are worked on at a time."""


@dataclass(frozen=True)
class Codes:
    """A weight [out, in] as (codes - zero_points) * scales, in groups of consecutive input channels.

    Args:
        element_type: i4, u4, i8, u8 or f4e2m1.
        codes: [out, in], a code an element, as `QuantizedLinear` has them.
        scales: float32 [out, groups].
        zero_points: [out, groups]; uint8 where they are integers from 0 to 255, else float32; None where
            there are none.
    """

    element_type: ov.Type
    codes: Tensor
    scales: Tensor
    zero_points: Tensor | None

    def chunks(self) -> Chunks:
        """The bytes of the codes [out, groups, group size]: row-major, the first of two in the low nibble."""
        for block in row_blocks(self.codes):
            if self.element_type == ov.Type.f4e2m1:
                block = pack_fp4(block)
            elif self.element_type.bitwidth == 4:
                block = pack_nibbles(block)
            yield block.contiguous().numpy().tobytes()


def in_codes(linear: QuantizedLinear) -> tuple[Codes, Tensor | None] | None:
    """What the plugin keeps of `linear`; None where it keeps codes of that kind in no fewer bits than f32.

    Returns:
        the codes, and the order [in], int64, in which their columns take the input channels; None for the
        order in which they are.
    """
    element_type = _element_type(linear)
    if element_type is None:
        return None
    codes_OI, order = linear.codes, None
    if linear.group_index is not None:
        order = torch.argsort(linear.group_index, stable=True)
        groups, size = linear.scales.shape[1], linear.group_size
        in_turn = torch.arange(groups).repeat_interleave(size)
        if not torch.equal(linear.group_index[order], in_turn):
            return None  # groups of different sizes
        if torch.equal(order, torch.arange(len(order))):
            order = None
        else:
            codes_OI = codes_OI[:, order]
    scales_OG = linear.scales.float()
    if linear.is_fp4 and linear.weight_scale_2 is not None:
        scales_OG = scales_OG * linear.weight_scale_2.float()
    scales_OG = scales_OG.expand(linear.out_features, -1)
    zeros_OG = linear.zero_points
    if zeros_OG is not None:
        zeros_OG = zeros_OG.expand(linear.out_features, -1)
        if bool((zeros_OG == zeros_OG.to(torch.uint8)).all()):
            zeros_OG = zeros_OG.to(torch.uint8)
    return Codes(element_type, codes_OI, scales_OG, zeros_OG), order


def dequantized_chunks(linear: QuantizedLinear) -> Chunks:
    """The weight [out, in] as f32, without `pre_quant_scale`."""
    rows = max(1, BLOCK // linear.in_features)
    for first in range(0, linear.out_features, rows):
        part = slice(first, first + rows)
        zeros = linear.zero_points
        block = replace(
            linear,
            codes=linear.codes[part],
            scales=_rows(linear.scales, part),
            zero_points=None if zeros is None else _rows(zeros, part),
            pre_quant_scale=None,
        )
        yield block.dequantize().numpy().tobytes()


def pack_nibbles(codes_OI: Tensor) -> Tensor:
    """Integer codes, int8 or uint8 [out, in] with `in` even, as uint8 [out, in / 2].

    The first of two is in the low nibble; negative codes become two's complement.
    """
    nibbles_OI = codes_OI.contiguous().view(torch.uint8)
    return (nibbles_OI[:, 0::2] & 15) | (nibbles_OI[:, 1::2] << 4)


def row_blocks(matrix_OI: Tensor) -> Iterator[Tensor]:
    """A matrix, some rows at a time."""
    rows = max(1, BLOCK // matrix_OI.shape[1])
    for first in range(0, matrix_OI.shape[0], rows):
        yield matrix_OI[first : first + rows]


def _rows(tensor: Tensor, part: slice) -> Tensor:
    """Rows of a tensor [out, ..], or [1, ..] which stands for them all."""
    return tensor if tensor.shape[0] == 1 else tensor[part]


def _element_type(linear: QuantizedLinear) -> ov.Type | None:
    """The constant's type for codes like those of `linear`; None where it has to be f32."""
    whole_rows, size = linear.scales.shape[1] == 1, linear.group_size
    if not (whole_rows or size == 16 or size % 32 == 0):
        return None  # for a single token the plugin makes garbage of such groups, without a word
    if linear.codes.is_floating_point():
        return ov.Type.f4e2m1 if linear.is_fp4 and size % 2 == 0 else None
    narrow = linear.bits == 4 and size % 2 == 0
    if linear.zero_points is None:
        return ov.Type.i4 if narrow else ov.Type.i8
    return ov.Type.u4 if narrow else ov.Type.u8
