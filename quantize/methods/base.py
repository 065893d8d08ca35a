"""The seam between the driver and the quantization methods.

The driver walks through the model and knows nothing of rounding; a method knows nothing of models. For
each group of linears that read the same input, the driver lets the method observe that input, as the
already quantized layers before it produce it, and then asks for the quantized linears.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from quantize.formats.base import LinearScheme
from quantize.linear import QuantizedLinear


class Statistics(Protocol):
    """What a method remembers of a group's inputs."""

    def update(self, x_TI: Tensor) -> None:
        """Take in inputs x [tokens, in], in the dtype of the forward pass."""


@dataclass(frozen=True)
class Group:
    """Linears that share one input, as the driver hands them to a method.

    Args:
        weights: name within the layer, e.g. "self_attn.q_proj" -> [out, in] in the stored dtype.
        biases: the same names -> [out]; only those that have one.
        norm: the weight [in] of the RMSNorm that produces the input, where the group may fold a scale into
            it; None where it may not, because something else that stays as it is reads the norm too, or
            because no norm feeds the group.
        pre_quant_scale: whether the stored form wants a scale of the input beside each linear.
        shared_scale: whether that scale belongs to other groups too, which leaves nothing but ones.
        source_rows: int64 [in], the output channel of the linear before the group that each input channel
            comes from, where the group may fold a scale of powers of two into it; None where it may not.
    """

    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    norm: Tensor | None
    pre_quant_scale: bool
    shared_scale: bool = False
    source_rows: Tensor | None = None


@dataclass(frozen=True)
class QuantizedGroup:
    """A method's answer.

    Args:
        linears: the group's names -> quantized linears.
        norm: the norm's weight with the scale folded in; None if it stays as it is.
        source_scale: float32, what the output channels of the linear before the group are divided by; None
            if they stay as they are.
        report: per name, what a user may want to know: JSON values, equal from run to run.
    """

    linears: Mapping[str, QuantizedLinear]
    norm: Tensor | None = None
    source_scale: Tensor | None = None
    report: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Method(Protocol):
    """A way to quantize the linears of a decoder layer."""

    @property
    def scheme(self) -> LinearScheme:
        """How its linears are stored. Every linear's input width must divide by the scheme's group size."""

    @property
    def needs_calibration(self) -> bool:
        """Whether it looks at activations. Where it does not, `quantize` is given no statistics."""

    def parameters(self) -> dict[str, Any]:
        """Everything that decides the method's output, as JSON: part of the resume state's fingerprint."""

    def observe(self, in_features: int, seed: int, device: torch.device) -> Any:
        """Empty `Statistics` for one group's inputs, which will come on `device`."""

    def quantize(self, group: Group, statistics: Any) -> QuantizedGroup:
        """Quantize one group, given the statistics of all its calibration inputs (None without any)."""
