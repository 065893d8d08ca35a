"""SmoothQuant W8A8 as a `Method`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from quantize.algorithms.smoothquant import search_alpha, smooth_linear, smoothing
from quantize.formats.base import INT8_SQ, LinearScheme
from quantize.methods.activations import ActivationStatistics, output_errors
from quantize.methods.base import Group, QuantizedGroup


@dataclass(frozen=True)
class SmoothQuant:
    """8-bit weights, a scale for each output channel; 8-bit activations with one static scale.

    The linears of a group share `pre_quant_scale` and `input_scale`. Both are stored beside every linear, as
    ModelOpt does; nothing goes into norms. Experts, which would have to share theirs, are not smoothed.

    Args:
        alpha: how much of the activations' range moves into the weights, 0 to 1; None to search it for each
            group.
    """

    alpha: float | None = None

    @property
    def scheme(self) -> LinearScheme:
        """The stored form."""
        return LinearScheme(INT8_SQ, bits=8)

    @property
    def needs_calibration(self) -> bool:
        """It looks at activations."""
        return True

    def parameters(self) -> dict[str, Any]:
        """The recipe's part of the fingerprint."""
        return {"method": "int8_sq", **asdict(self)}

    def observe(self, in_features: int, seed: int, device: torch.device) -> ActivationStatistics:
        """Empty statistics for inputs of `in_features` channels."""
        return ActivationStatistics(in_features, seed, device)

    def quantize(self, group: Group, statistics: ActivationStatistics) -> QuantizedGroup:
        """Smooth and round; with a searched alpha never worse than rounding alone, on the sample."""
        weights = list(group.weights.values())
        alpha = None if group.shared_scale else self.alpha
        if self.alpha is None and not group.shared_scale:
            alpha = search_alpha(weights, statistics.amax, statistics.sample)
        chosen = smoothing(weights, statistics.amax, alpha)
        linears = {
            name: smooth_linear(weight_OI, chosen, group.biases.get(name))
            for name, weight_OI in group.weights.items()
        }
        errors = output_errors(group.weights, linears, INT8_SQ, statistics.sample)
        return QuantizedGroup(
            linears, report={name: {"alpha": alpha} | facts for name, facts in errors.items()}
        )
