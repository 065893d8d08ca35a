"""The two halves of a decoder layer, each as what it adds to the residual stream.

The difference of two streams would not do: where a channel of the stream is large, what a layer adds to it
is lost in the rounding.

Shapes: B sequences of S tokens; C channels of H hidden_size.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from quantize.layer import DecoderLayer

_BROKEN = 1e9  # the error of NaN and infinity, which JSON has no number for


def attention_update(layer: DecoderLayer, hidden_BSH: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """What the attention adds, [B, S, H]."""
    context_BSQ = layer.attend(layer.attention_input(hidden_BSH), rotary)
    return layer.after_attention(torch.zeros_like(hidden_BSH), context_BSQ)


def mlp_update(layer: DecoderLayer, hidden_BSH: Tensor) -> Tensor:
    """What the MLP or the experts add, [B, S, H], to the stream after the attention."""
    if layer.sparse:
        return layer.sum_of_answers(hidden_BSH)
    return layer.after_mlp(torch.zeros_like(hidden_BSH), layer.activate(layer.mlp_input(hidden_BSH)))


def channel_error(got_SC: Tensor, expected_SC: Tensor) -> float:
    """How far the worst channel is off, as a share of its root mean square over the tokens.

    One row of a weight that is wrong is one channel that is, whatever the others hold. A channel that hardly
    says anything is measured by what half of the channels exceed.
    """
    size_C = expected_SC.double().square().mean(0).sqrt()
    off_C = (got_SC.double() - expected_SC.double()).square().mean(0).sqrt()
    floor = size_C.median().clamp_min(torch.finfo(torch.float32).tiny)
    error = float((off_C / size_C.maximum(floor)).max())
    return error if math.isfinite(error) else _BROKEN
