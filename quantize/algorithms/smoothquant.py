"""SmoothQuant (Xiao et al., arXiv 2211.10438), on tensors alone.

8-bit activations with one scale suffer from the few channels that are far larger than the rest. SmoothQuant
divides each input channel by s = max|x|^alpha / max|w|^(1 - alpha) and multiplies the weight's column by it:
the range moves from the activations into the weights, which have a scale for each row. At alpha = 1 all
channels of the input span the same range, at alpha = 0 all columns of the weights do.

The paper picks one alpha for a model. Here each group of linears gets the one that loses least of its output
with inputs and weights both rounded, on a sample of the calibration tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.algorithms.awq import absorb
from quantize.algorithms.fp8 import amax_scale
from quantize.algorithms.integer import sampled_rows
from quantize.formats.base import INT8_SQ
from quantize.linear import QuantizedLinear
from quantize.simulate import INT8_MAX, input_rounding

# Alphas are multiples of 1 / _STEPS.
_STEPS = 20
# A channel that hardly fires must not take the scale of the others out of the range of float16.
_LARGEST_SCALE = 1e4
# Output rows of each weight by which alphas are judged.
_JUDGED_ROWS = 1024


@dataclass(frozen=True)
class Smoothing:
    """A factor of each input channel.

    Attributes:
        pre_quant_scale: [in], in the model's dtype; multiplies x.
        scale: float32 [in], multiplies the columns of W: the inverse of the rounded `pre_quant_scale`.
        input_scale: float32 scalar, max|x pre_quant_scale| / 127.
        alpha: None where nothing is smoothed.
    """

    pre_quant_scale: Tensor
    scale: Tensor
    input_scale: Tensor
    alpha: float | None


def smoothing(weights: Sequence[Tensor], amax_I: Tensor, alpha: float | None) -> Smoothing:
    """The smoothing of linears that read the same x, by `alpha`; with None, factors of 1.

    Args:
        weights: each [out, in].
        amax_I: float32 [in], the largest |x|.
        alpha: 0 to 1.
    """
    ones_I = weights[0].new_ones(weights[0].shape[1])
    pre_quant_scale_I, scale_I = ones_I, ones_I.float()
    if alpha is not None:
        w_I = torch.stack([weight.abs().amax(dim=0).float() for weight in weights]).amax(dim=0)
        wanted_I = _fired(amax_I).pow(alpha) / _fired(w_I).pow(1 - alpha)
        wanted_I = wanted_I / (wanted_I.max() * wanted_I.min()).sqrt()
        pre_quant_scale_I, scale_I = absorb(ones_I, wanted_I.clamp_(1 / _LARGEST_SCALE, _LARGEST_SCALE))
    input_scale = amax_scale((amax_I * pre_quant_scale_I.float()).amax(), INT8_MAX)
    return Smoothing(pre_quant_scale_I, scale_I, input_scale, alpha)


def search_alpha(weights: Sequence[Tensor], amax_I: Tensor, sample_TI: Tensor) -> float | None:
    """The alpha, in steps of 1/20, that loses least of the output; None where not smoothing loses less still.

    Args:
        weights: each [out, in].
        amax_I: float32 [in], the largest |x|.
        sample_TI: float32 [tokens, in], inputs to measure the loss on.
    """
    judged = [sampled_rows(weight_OI, _JUDGED_ROWS) for weight_OI in weights]
    outputs = [sample_TI @ rows_OI.float().t() for rows_OI in judged]
    errors: dict[int | None, float] = {}

    def evaluate(steps: Sequence[int | None]) -> int | None:
        """Fill in the errors of new steps; return the best so far."""
        for step in steps:
            if step in errors or (step is not None and not 0 <= step <= _STEPS):
                continue
            candidate = smoothing(weights, amax_I, None if step is None else step / _STEPS)
            errors[step] = _loss(judged, outputs, sample_TI, candidate)
        return min(errors, key=errors.__getitem__)

    # The error is smooth in alpha: every other step, then the neighbours of the best.
    best = evaluate([None, *range(0, _STEPS + 1, 2)])
    if best is not None:
        best = evaluate([best - 1, best + 1])
    return None if best is None else best / _STEPS


def smooth_linear(weight_OI: Tensor, chosen: Smoothing, bias_O: Tensor | None = None) -> QuantizedLinear:
    """Round W diag(scale) to int8, each row with a scale of its own."""
    scaled_OI = weight_OI.float() * chosen.scale
    scales_O1 = amax_scale(scaled_OI.abs().amax(dim=1, keepdim=True), INT8_MAX)
    return QuantizedLinear(
        (scaled_OI / scales_O1).round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8),
        scales_O1,
        bits=8,
        pre_quant_scale=chosen.pre_quant_scale,
        input_scale=chosen.input_scale,
        bias=bias_O,
    )


def _loss(
    weights: Sequence[Tensor], outputs: Sequence[Tensor], sample_TI: Tensor, chosen: Smoothing
) -> float:
    """The squared error of the outputs [tokens, out] with weights and inputs rounded."""
    linears = [smooth_linear(weight_OI, chosen) for weight_OI in weights]
    rounding = input_rounding(linears[0], INT8_SQ)
    assert rounding is not None
    rounded_TI = rounding(sample_TI)
    return sum(
        float((rounded_TI @ linear.dequantize().t()).sub_(output_TO).square().sum())
        for linear, output_TO in zip(linears, outputs, strict=True)
    )


def _fired(amax_I: Tensor) -> Tensor:
    """Ranges with the smallest of those above 0 in place of 0; ones where all are 0."""
    positive_I = amax_I[amax_I > 0]
    return amax_I.clamp_min(float(positive_I.min())) if len(positive_I) else torch.ones_like(amax_I)
