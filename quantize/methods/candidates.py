"""Several ways to quantize one group of linears, and the choice of the one that loses least of its output."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from quantize.algorithms.integer import Grid, sampled_rows
from quantize.formats.base import LinearScheme
from quantize.linear import QuantizedLinear
from quantize.methods.base import Group, QuantizedGroup
from quantize.methods.statistics import InputStatistics

# Output rows of each weight by which candidates are judged.
_JUDGED_ROWS = 1024


@dataclass(frozen=True)
class Scaling:
    """A factor of each input channel of the weights, and where its inverse is stored.

    Args:
        scale: float32 [in].
        norm: the norm's weight divided by it, where it goes there.
        pre_quant_scale: its inverse [in], where the stored form wants one beside each linear.
        source_scale: as in `QuantizedGroup`, where it goes into the linear before.
        alpha, duo: how it was found, as in `awq.ScaleSearch`.
    """

    scale: Tensor
    norm: Tensor | None = None
    pre_quant_scale: Tensor | None = None
    source_scale: Tensor | None = None
    alpha: float = 0.0
    duo: bool = False


@runtime_checkable
class Folding(Protocol):
    """A method that puts a scale of the input channels into the norm before a group."""

    @property
    def scheme(self) -> LinearScheme:
        """As in `Method`."""

    def fold(self, group: Group, statistics: InputStatistics) -> Scaling | None:
        """A scale of powers of two that suits linears which are yet to be quantized, one by one.

        Args:
            group: samples of the linears' rows, and the norm.
            statistics: of what the norm yields.

        Returns:
            the scaling with the norm in it; None where no scaling is as good.
        """


@dataclass(frozen=True)
class Candidate:
    """A way to quantize a group.

    Args:
        scaling: what its weights are multiplied by.
        round: (weight [out, in], scale [in]) to the codes [out, in] of the scaled weight, their grid [out,
            in / group_size], and the clip ratios of the same shape, None where nothing is clipped.
    """

    scaling: Scaling
    round: Callable[[Tensor, Tensor], tuple[Tensor, Grid, Tensor | None]]


def unscaled(group: Group) -> Scaling:
    """No scaling, stored as ones where the form wants a scale."""
    weight_OI = next(iter(group.weights.values()))
    ones_I = torch.ones(weight_OI.shape[1], device=weight_OI.device)
    return Scaling(ones_I, pre_quant_scale=ones_I.to(weight_OI.dtype) if group.pre_quant_scale else None)


def best_of(group: Group, statistics: InputStatistics, candidates: Iterable[Candidate]) -> QuantizedGroup:
    """Quantize the group in every way and keep that of the least output error, the first of equals.

    The searches within each candidate minimize a part of the error; what counts is the error of the whole, of
    a sample of the outputs where there are many. The first candidate is plain rounding, which the report
    compares with.
    """
    best: QuantizedGroup | None = None
    least = torch.inf
    rounded: dict[str, float] = {}
    samples = {name: sampled_rows(weight_OI, _JUDGED_ROWS) for name, weight_OI in group.weights.items()}
    whole = {name: _output_energy(rows_OI.float(), statistics) for name, rows_OI in samples.items()}
    for candidate in candidates:
        scaling = candidate.scaling
        linears, errors, clips = {}, {}, {}
        for name, weight_OI in group.weights.items():
            codes_OI, grid, ratios_OG = candidate.round(weight_OI, scaling.scale)
            linear = QuantizedLinear(
                codes_OI,
                grid.scales,
                bits=grid.bits,
                zero_points=grid.zero_points,
                pre_quant_scale=scaling.pre_quant_scale,
                bias=group.biases.get(name),
            )
            ideal = replace(linear.sampled(_JUDGED_ROWS), pre_quant_scale=1 / scaling.scale)
            errors[name] = _output_energy(ideal.dequantize().sub_(samples[name]), statistics)
            clips[name] = 1.0 if ratios_OG is None else round(float(ratios_OG.mean()), 4)
            linears[name] = linear
        rounded = rounded or errors
        total = sum(errors.values())
        if best is not None and not total < least:
            continue
        least = total
        report = {
            name: {
                "alpha": scaling.alpha,
                "weights_in_scale": scaling.duo,
                "mean_clip": clips[name],
                "relative_error": _relative(errors[name], whole[name]),
                "relative_error_of_rounding": _relative(rounded[name], whole[name]),
            }
            for name in group.weights
        }
        best = QuantizedGroup(linears, scaling.norm, scaling.source_scale, report)
    assert best is not None, "no candidates"
    return best


def _output_energy(matrix_OI: Tensor, statistics: InputStatistics) -> float:
    """|| M X^T ||^2."""
    return float((matrix_OI @ statistics.sketch.t()).square().sum())


def _relative(error: float, whole: float) -> float:
    """The root of the quotient, to six digits; 0 for an output that is 0."""
    return float(f"{(error / whole) ** 0.5:.6g}") if whole else 0.0
