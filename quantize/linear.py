"""The quantized linear: the one in-memory form that every quantizer makes and every flavour reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class QuantizedLinear:
    """Codes and scales of one linear layer; `dequantize()` defines what they mean.

    Args:
        codes: [out, in], int8 holding the signed value (-8..7 for 4 bits), uint8 when `zero_points` is
            given (0..15 for 4 bits), or float8_e4m3fn.
        scales: float32 [out, in / group_size]; [out, 1] per output channel; [1, 1] per tensor.
        bits: width of a code: 4 or 8.
        zero_points: float32, shaped like `scales`; None for symmetric formats.
        pre_quant_scale: [in]; multiplies the activation before the matrix product (AWQ, SmoothQuant).
        input_scale: float32 scalar; the static activation scale (amax / largest code), None if dynamic.
        bias: [out].
    """

    codes: Tensor
    scales: Tensor
    bits: int
    zero_points: Tensor | None = None
    pre_quant_scale: Tensor | None = None
    input_scale: Tensor | None = None
    bias: Tensor | None = None

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.codes.shape[0]

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.codes.shape[1]

    @property
    def group_size(self) -> int:
        """Consecutive input channels that share one scale."""
        return self.in_features // self.scales.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] that this layer stands for: (codes - zero) * scale * pre_quant_scale.

        Computed in float32 (float64 if asked for) and rounded once to `dtype`.
        """
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        rows, columns = self.scales.shape
        codes_OGI = self.codes.to(exact).reshape(self.out_features, columns, -1)
        if self.zero_points is not None:
            codes_OGI = codes_OGI - self.zero_points.to(exact).reshape(rows, columns, 1)
        weight_OI = (codes_OGI * self.scales.to(exact).reshape(rows, columns, 1)).reshape(self.codes.shape)
        if self.pre_quant_scale is not None:
            weight_OI = weight_OI * self.pre_quant_scale.to(exact)
        return weight_OI.to(dtype)
