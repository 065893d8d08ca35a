"""The quantized linear: the one in-memory form that every quantizer makes and every flavour reads."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from quantize.algorithms.integer import sampled_rows


@dataclass(frozen=True)
class QuantizedLinear:
    """Codes and scales of one linear layer; `dequantize()` defines what they mean.

    Args:
        codes: [out, in]. Integers: int8 holding the signed value (-8..7 for 4 bits), or uint8 when
            `zero_points` is given (0..15 for 4 bits). Floats: float8_e4m3fn, which for 4 bits holds the
            values of E2M1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives).
        scales: float32 [out, in / group_size]; [out, 1] per output channel; [1, 1] per tensor.
        bits: width of a stored code: 4 or 8.
        zero_points: float32, shaped like `scales`; None for symmetric formats.
        group_index: int64 [in], the group (column of `scales`) of each input channel; None where groups are
            consecutive channels. GPTQ's g_idx.
        pre_quant_scale: [in]; multiplies the activation before the matrix product (AWQ, SmoothQuant).
        input_scale: float32 scalar; the static activation scale (amax / largest code), None if dynamic.
        weight_scale_2: float32 scalar. NVFP4: a factor of all `scales`. W4A8: amax / 448 of the codes times
            scales, with which a kernel brings them into fp8; it does not enter the weight.
        bias: [out].
    """

    codes: Tensor
    scales: Tensor
    bits: int
    zero_points: Tensor | None = None
    group_index: Tensor | None = None
    pre_quant_scale: Tensor | None = None
    input_scale: Tensor | None = None
    weight_scale_2: Tensor | None = None
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
        """Input channels that share one scale."""
        return self.in_features // self.scales.shape[1]

    @property
    def is_fp4(self) -> bool:
        """Whether the codes are E2M1 numbers."""
        return self.bits == 4 and self.codes.is_floating_point()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] that this layer stands for: (codes - zero) * scale * pre_quant_scale.

        Computed in float32 (float64 if asked for) and rounded once to `dtype`.
        """
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        scales_OG = self.scales.to(exact)
        if self.is_fp4 and self.weight_scale_2 is not None:
            scales_OG = scales_OG * self.weight_scale_2.to(exact)
        weight_OI = self.codes.to(exact)
        if self.group_index is None:
            rows, columns = scales_OG.shape
            codes_OGI = weight_OI.view(self.out_features, columns, -1)
            if self.zero_points is not None:
                codes_OGI = codes_OGI - self.zero_points.to(exact).view(rows, columns, 1)
            weight_OI = (codes_OGI * scales_OG.view(rows, columns, 1)).view(weight_OI.shape)
        else:
            if self.zero_points is not None:
                weight_OI = weight_OI - self.zero_points.to(exact)[:, self.group_index]
            weight_OI = weight_OI * scales_OG[:, self.group_index]
        if self.pre_quant_scale is not None:
            weight_OI = weight_OI * self.pre_quant_scale.to(exact)
        return weight_OI.to(dtype)

    def sampled(self, count: int) -> QuantizedLinear:
        """The linear with no more than `count` of its output channels, those that `sampled_rows` draws."""
        rows: dict[str, Any] = {
            name: sampled_rows(value, count)
            for name in ("codes", "scales", "zero_points", "bias")
            if (value := getattr(self, name)) is not None
        }
        return replace(self, **rows)

    def to(self, device: torch.device | str) -> QuantizedLinear:
        """The same linear with every tensor on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)
