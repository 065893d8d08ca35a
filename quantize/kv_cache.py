"""Scales of a quantized KV cache, from the keys and values that calibration produces.

A layer's keys share one scale, and so do its values: amax / 127 for INT8; for FP8 amax / 448, but at least 1,
since the exponent of an e4m3 number leaves nothing to gain below (what ModelOpt writes and loaders clamp to).
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8, INT8 = "FP8", "INT8"


class KvScales:
    """Accumulates the magnitudes of one layer's cache; `algo` is "FP8" or "INT8"."""

    def __init__(self, algo: str) -> None:
        self.algo = algo
        self._amax: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor) -> None:
        """Take in keys, rotated, and values, each [B, heads, S, D]."""
        self._amax.append(torch.stack((keys.abs().amax(), values.abs().amax())).float())

    def result(self) -> tuple[Tensor, Tensor]:
        """The scales of keys and values, float32 scalars."""
        amax = torch.stack(self._amax).amax(dim=0).cpu()
        scales = (amax / 448).clamp_min(1) if self.algo == FP8 else amax / 127
        scales = torch.where(scales == 0, torch.ones_like(scales), scales)
        return scales[0].clone(), scales[1].clone()
