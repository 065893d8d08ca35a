"""AWQ W4A16 as a `Method`: search, fold and round one group of linears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from quantize.awq import ScaleSearch, absorb, quantize_scaled, search_scale
from quantize.linear import QuantizedLinear
from quantize.method import Group, QuantizedGroup
from quantize.statistics import InputStatistics


@dataclass(frozen=True)
class Awq:
    """4-bit weights, symmetric, in groups; 16-bit activations.

    The scale of a group's input goes into the norm before it. Where there is none (o_proj, down_proj) it
    becomes the linear's pre_quant_scale, which TensorRT-LLM applies to these two in any case. Both are
    stored in the model's dtype; the weights are quantized for the rounded values.

    Args:
        group_size: consecutive input channels that share a scale.
        clip: whether to search for each group's range.
    """

    group_size: int = 128
    clip: bool = True

    @property
    def quant_algo(self) -> str:
        """ModelOpt's name of the stored form."""
        return "W4A16_AWQ"

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "awq", **asdict(self)}

    def observe(self, in_features: int, seed: int) -> InputStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return InputStatistics(in_features, self.group_size, seed)

    def quantize(self, group: Group, statistics: InputStatistics) -> QuantizedGroup:
        """Search scale and clip on the statistics, and round; never worse than rounding alone."""
        dtype = next(iter(group.weights.values())).dtype
        ones_I = torch.ones_like(statistics.magnitude)
        plain = _Attempt(None, ones_I.to(dtype) if group.pre_quant_scale else None, ones_I)
        attempts = [(plain, False)]
        search = ScaleSearch(ones_I, 0.0, False)
        if group.norm is not None or group.pre_quant_scale:
            weights = list(group.weights.values())
            search = search_scale(weights, statistics.magnitude, statistics.sketch, self.group_size, dtype)
            if group.norm is not None:
                norm, scale_I = absorb(group.norm, search.scale)
                scaled = _Attempt(norm, None, scale_I)
            else:
                pre_quant_I, scale_I = absorb(ones_I.to(dtype), search.scale)
                scaled = _Attempt(None, pre_quant_I, scale_I)
            attempts.append((scaled, False))
        if self.clip:
            attempts.append((attempts[-1][0], True))

        # Search and clip each minimize a part of the error; what counts is the error of the whole.
        outcomes = [self._round(group, statistics, attempt, clip) for attempt, clip in attempts]
        best = min(range(len(outcomes)), key=lambda index: sum(outcomes[index].errors.values()))
        chosen, outcome, rounded = attempts[best][0], outcomes[best], outcomes[0]
        report = {
            name: {
                "alpha": search.alpha if chosen is not plain else 0.0,
                "weights_in_scale": search.duo if chosen is not plain else False,
                "mean_clip": outcome.clips[name],
                "relative_error": _relative(outcome.errors[name], weight, statistics),
                "relative_error_of_rounding": _relative(rounded.errors[name], weight, statistics),
            }
            for name, weight in group.weights.items()
        }
        return QuantizedGroup(outcome.linears, chosen.norm, report)

    def _round(self, group: Group, statistics: InputStatistics, attempt: _Attempt, clip: bool) -> _Outcome:
        linears, errors, clips = {}, {}, {}
        for name, weight_OI in group.weights.items():
            codes_OI, scales_OG, ratios_OG = quantize_scaled(
                weight_OI,
                attempt.scale,
                statistics.blocks if clip else None,
                self.group_size,
                weight_OI.dtype,
            )
            linears[name] = QuantizedLinear(
                codes_OI,
                scales_OG,
                bits=4,
                pre_quant_scale=attempt.pre_quant_scale,
                bias=group.biases.get(name),
            )
            ideal = QuantizedLinear(codes_OI, scales_OG, bits=4, pre_quant_scale=1 / attempt.scale)
            change_OI = ideal.dequantize() - weight_OI.float()
            errors[name] = float((change_OI @ statistics.sketch.t()).square().sum())
            clips[name] = 1.0 if ratios_OG is None else round(float(ratios_OG.mean()), 4)
        return _Outcome(linears, errors, clips)


@dataclass(frozen=True)
class _Attempt:
    """A scale of the input channels, float32 [in], and where its inverse is stored."""

    norm: Tensor | None
    pre_quant_scale: Tensor | None
    scale: Tensor


@dataclass(frozen=True)
class _Outcome:
    """Quantized linears, each one's squared output error and mean clip ratio."""

    linears: Mapping[str, QuantizedLinear]
    errors: Mapping[str, float]
    clips: Mapping[str, float]


def _relative(error: float, weight_OI: Tensor, statistics: InputStatistics) -> float:
    """|| (W' - W) X^T || / || W X^T ||, to six digits, given the squared numerator."""
    whole = float((weight_OI.float() @ statistics.sketch.t()).square().sum())
    return float(f"{(error / whole) ** 0.5:.6g}") if whole else 0.0
