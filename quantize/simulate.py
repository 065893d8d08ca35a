"""What engines round besides weights: the inputs of quantized linears, and the KV cache.

Each function maps values to the nearest ones that the stored form has, in the dtype that they came in, so
that a forward pass in plain arithmetic computes what an engine's kernels would multiply. The sums stay
exact: the order and the width in which a kernel adds are not simulated.

Shapes: T tokens (any leading dimensions), I input channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quantize.formats.base import FP8, FP8_ROWWISE, INT8_DYNAMIC, INT8_SQ, NVFP4, W4A8_AWQ
from quantize.linear import QuantizedLinear

E4M3_MAX = 448.0
E2M1_MAX = 6.0
INT8_MAX = 127.0
FP4_BLOCK = 16
"""Input channels that share a scale in NVFP4."""

Rounding = Callable[[Tensor], Tensor]

_GRIDS = {
    **dict.fromkeys((FP8, FP8_ROWWISE, W4A8_AWQ), E4M3_MAX),
    **dict.fromkeys((INT8_SQ, INT8_DYNAMIC), INT8_MAX),
}
"""quant_algo -> the largest code of its activations."""


def input_rounding(linear: QuantizedLinear, quant_algo: str) -> Rounding | None:
    """What a kernel of `quant_algo` makes of the input of `linear`; None where it stays as it is.

    The scale is the linear's `input_scale`, or where it has none that of each token's largest magnitude. A
    `pre_quant_scale` multiplies before rounding, and is divided out again: `dequantize()` has it in the
    weight.
    """
    if quant_algo == NVFP4:
        return None if linear.input_scale is None else _scaled(_fp4(linear.input_scale), linear)
    if quant_algo not in _GRIDS:
        return None
    top = _GRIDS[quant_algo]
    rounded = round_e4m3 if top == E4M3_MAX else _round_int8
    static = linear.input_scale

    def on_grid(x_TI: Tensor) -> Tensor:
        scale = x_TI.abs().amax(-1, keepdim=True) / top if static is None else static.to(x_TI.dtype)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return rounded(x_TI / scale) * scale

    return _scaled(on_grid, linear)


def cache_rounding(algo: str, scale: Tensor) -> Rounding:
    """What a KV cache of `algo` ("FP8" or "INT8") makes of keys or values with this scalar scale."""
    rounded = round_e4m3 if algo == FP8 else _round_int8
    return lambda x: rounded(x / scale.to(x.dtype)) * scale.to(x.dtype)


def round_e4m3(x: Tensor) -> Tensor:
    """The nearest values of float8_e4m3fn; what lies beyond its range becomes its end. NaN stays NaN."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def round_e2m1(x: Tensor) -> Tensor:
    """The nearest values of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6), ties to the even code; ends as above."""
    magnitude = x.abs().clamp(max=E2M1_MAX)
    one = torch.ones_like(magnitude)
    step = torch.where(magnitude < 2, one / 2, torch.where(magnitude < 4, one, 2 * one))
    return (magnitude / step).round() * step * x.sign()


def _round_int8(x: Tensor) -> Tensor:
    return x.round().clamp(-INT8_MAX - 1, INT8_MAX)


def _fp4(global_scale: Tensor) -> Rounding:
    """NVFP4's two levels: an e4m3 scale for each block of 16 channels, in units of `global_scale`."""

    def on_grid(x_TI: Tensor) -> Tensor:
        unit = global_scale.to(x_TI.dtype)
        blocks_TGI = x_TI.reshape(*x_TI.shape[:-1], x_TI.shape[-1] // FP4_BLOCK, FP4_BLOCK)
        amax_TG1 = blocks_TGI.abs().amax(-1, keepdim=True)
        scale_TG1 = round_e4m3(amax_TG1 / E2M1_MAX / unit) * unit
        codes_TGI = round_e2m1(
            blocks_TGI / torch.where(scale_TG1 == 0, torch.ones_like(scale_TG1), scale_TG1)
        )
        return (codes_TGI * scale_TG1).flatten(-2)

    return on_grid


def _scaled(on_grid: Rounding, linear: QuantizedLinear) -> Rounding:
    factor_I = linear.pre_quant_scale
    if factor_I is None:
        return on_grid
    return lambda x_TI: on_grid(x_TI * factor_I.to(x_TI.dtype)) / factor_I.to(x_TI.dtype)
