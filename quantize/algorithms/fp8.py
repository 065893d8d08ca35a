"""FP8 (E4M3) on tensors alone: values are codes times a scale, the largest code being 448.

E4M3 keeps four significant bits over eighteen binades, so the scale matters little so long as nothing
overflows: it is the largest magnitude over 448, of a tensor or of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantize.algorithms.integer import divided
from quantize.simulate import E4M3_MAX

E4M3 = torch.float8_e4m3fn


def amax_scale(amax: Tensor, largest: float = E4M3_MAX) -> Tensor:
    """float32 scales that bring magnitudes `amax` (any shape) to the code `largest`; 1 where amax is 0.

    Never less than float32's smallest normal number, so that one can divide by it.
    """
    amax = amax.float()
    scales = divided(amax, largest).clamp_min_(torch.finfo(torch.float32).tiny)
    return torch.where(amax == 0, torch.ones_like(scales), scales)


def to_e4m3(values: Tensor) -> Tensor:
    """The nearest float8_e4m3fn numbers, ties to even. Beyond 448 they saturate: none becomes NaN."""
    return values.float().clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
