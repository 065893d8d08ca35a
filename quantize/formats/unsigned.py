"""Signed and unsigned integer codes: GPTQ, AutoAWQ and compressed-tensors store codes from 0 up.

A symmetric linear is an unsigned one whose zero points all lie in the middle, 8 of 0..15 or 128 of 0..255;
nothing is rounded on the way from one to the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, QuantizeError

SCALE_DTYPES = (torch.float16, torch.bfloat16)


def middle(bits: int) -> int:
    """The zero point of a symmetric linear."""
    return 1 << (bits - 1)


def unsigned(linear: QuantizedLinear, module: str) -> tuple[Tensor, Tensor]:
    """The codes, uint8 [out, in], and zero points, uint8 [out, groups], of an integer linear.

    Raises QuantizeError for a zero point that is not one of the codes.
    """
    shape = linear.out_features, linear.scales.shape[1]
    if linear.zero_points is None:
        zero = middle(linear.bits)
        codes_OI = (linear.codes.to(torch.int16) + zero).to(torch.uint8)
        return codes_OI, torch.full(shape, zero, dtype=torch.uint8)
    zeros_OG = linear.zero_points.expand(shape)
    stored_OG = zeros_OG.round().clamp(0, 2**linear.bits - 1)
    if not torch.equal(stored_OG, zeros_OG):
        raise QuantizeError(
            "a zero point is not a whole number within the range of the codes",
            where=module,
            why=f"it is stored in {linear.bits} bits, like the codes",
            fix="use the form modelopt, or quantize with symmetric: true",
        )
    return linear.codes, stored_OG.to(torch.uint8)


def from_unsigned(
    codes_OI: Tensor,
    zeros_OG: Tensor | None,
    scales_OG: Tensor,
    bits: int,
    *,
    symmetric: bool,
    where: str,
    group_index: Tensor | None = None,
    bias: Tensor | None = None,
) -> QuantizedLinear:
    """A linear of unsigned codes.

    Args:
        codes_OI: uint8 [out, in].
        zeros_OG: uint8 [out, groups]; None where they are known to lie in the middle.
        scales_OG: [out, groups] in any dtype.
        bits: width of a code.
        symmetric: whether the linear is to have signed codes and no zero points.
        where: names the linear in errors.
        group_index, bias: as in `QuantizedLinear`.

    Raises:
        ModelError: symmetric, but a zero point does not lie in the middle; a scale is NaN or infinite.
    """
    zero = middle(bits)
    if symmetric and zeros_OG is not None and not bool((zeros_OG == zero).all()):
        raise ModelError(
            f"the configuration says symmetric, but there is a zero point other than {zero}",
            where=where,
            fix="correct the configuration, or download the checkpoint again",
        )
    scales_OG = scales_OG.float().contiguous()
    if not scales_OG.isfinite().all():
        raise ModelError("a scale is NaN or infinite", where=where, fix="quantize the model again")
    if symmetric:
        codes_OI, zeros_OG = (codes_OI.to(torch.int16) - zero).to(torch.int8), None
    return QuantizedLinear(
        codes_OI.contiguous(),
        scales_OG,
        bits=bits,
        zero_points=None if zeros_OG is None else zeros_OG.float().contiguous(),
        group_index=group_index,
        bias=bias,
    )


def half_scales(linear: QuantizedLinear, module: str, dtype: torch.dtype, form: str) -> Tensor:
    """The scales [out, groups] in a 16-bit type that holds each of them exactly, `dtype` rather than another.

    Raises QuantizeError where there is none.
    """
    for candidate in dict.fromkeys((dtype, *SCALE_DTYPES)):
        stored_OG = linear.scales.to(candidate)
        if candidate in SCALE_DTYPES and torch.equal(stored_OG.float(), linear.scales):
            return stored_OG
    raise QuantizeError(
        "a scale is not a number of 16 bits",
        where=module,
        why=f"the form {form} stores scales as float16 or bfloat16, and rounding them changes the weights",
        fix="use the form modelopt or compressed-tensors, or quantize the model again with llmbuild",
    )


def group_index(linear: QuantizedLinear) -> Tensor:
    """The group of each input channel, int32 [in]."""
    if linear.group_index is not None:
        return linear.group_index.to(torch.int32)
    return torch.arange(linear.in_features, dtype=torch.int32) // linear.group_size
