"""What the tensors of one linear in a rank file mean: their packing and scales, algorithm by algorithm.

Of `module` the file stores, by suffix, for a weight of [out, in]:

    quant_algo                 weight              scales
    none, W8A16, W4A16         dtype [out, in]
    W4A16_AWQ                  int8 [out / 2, in]  weights_scaling_factor f32 [out, in / group],
                                                   prequant_scaling_factor [in], zero [in / group, out]
    W4A8_AWQ                   int8 [out / 2, in]  the same but zero, weights_scaling_factor_2 f32 [1],
                                                   activation_scaling_factor f32 [1]
    FP8                        e4m3 [out, in]      weights_scaling_factor, activation_scaling_factor f32 [1]
    FP8_PER_CHANNEL_PER_TOKEN  e4m3 [out, in]      per_channel_scale f32 [out]
    W8A8_SQ_PER_CHANNEL        int8 [out, in]      weights_scaling_factor f32 [out],
                                                   prequant_scaling_factor [in],
                                                   activation_scaling_factor f32 [1]
    W8A8_SQ_*_PLUGIN           int8 [out, in]      per_channel_scale f32 [1, out] or [1, 1],
                                                   smoother f32 [1, in]
    NVFP4                      uint8 [out, in / 2] weights_scaling_factor e4m3 [out, in / 16],
                                                   weights_scaling_factor_2 and
                                                   activation_scaling_factor f32 [1]

Experts have one more dimension in front. A GPTQ weight, and a W8A16 or W4A16 one that is int8 already, were
permuted for one kind of GPU, which the file does not name: they cannot be decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from quantize.formats.base import FP8, FP8_ROWWISE, INT8_SQ, NVFP4, W4A8_AWQ, W4A16_AWQ
from quantize.formats.packing import unpack_fp4, unpack_int4_rows
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError

SQ_PLUGINS = (
    "W8A8_SQ_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN",
    "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN",
)
ROW_PAIRS = (W4A16_AWQ, W4A8_AWQ)
DECODED = (*ROW_PAIRS, FP8, FP8_ROWWISE, INT8_SQ, NVFP4, *SQ_PLUGINS)
"""Every algorithm whose codes can be read."""

SUFFIXES = (
    *("weight", "weights_scaling_factor", "weights_scaling_factor_2", "activation_scaling_factor"),
    *("prequant_scaling_factor", "per_channel_scale", "smoother", "zero"),
)
"""The tensors of a linear that `decode` looks at."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def decode(stored: Mapping[str, Tensor], algo: str | None, where: str) -> QuantizedLinear | Tensor:
    """The linear [out, in] that these tensors, by suffix, stand for; a plain weight as it is.

    Raises ModelError: tensors are missing or do not fit together, or the weight cannot be decoded.
    """
    if "weight" not in stored:
        raise _error(where, "the weight is missing")
    weight = stored["weight"]
    if weight.dtype in FLOATS:
        return weight
    if algo not in DECODED:
        raise ModelError(
            f"a weight of {algo or 'an unquantized linear'} is stored as {str(weight.dtype)[6:]}",
            where=where,
            why="it was permuted for one kind of GPU, which the file does not name" if algo else None,
            fix="convert the model again with llmbuild, which stores what every GPU's build can read",
        )
    try:
        return _quantized(stored, algo)
    except KeyError as error:
        raise _error(where, f"{error.args[0]} is missing") from None
    except RuntimeError as error:  # shapes that do not fit
        raise _error(where, str(error)) from None


def _quantized(stored: Mapping[str, Tensor], algo: str) -> QuantizedLinear:
    weight, zero_points = stored["weight"], None
    if algo in ROW_PAIRS:
        codes_OI = unpack_int4_rows(weight)
    elif algo == NVFP4:
        codes_OI = unpack_fp4(weight)
    elif algo in (FP8, FP8_ROWWISE):
        codes_OI = weight.view(torch.float8_e4m3fn)
    else:
        codes_OI = weight
    rows, columns = codes_OI.shape
    per_channel = algo == FP8_ROWWISE or algo in SQ_PLUGINS
    scales = stored["per_channel_scale" if per_channel else "weights_scaling_factor"].float()
    if algo in (*ROW_PAIRS, NVFP4):
        scales = scales.view(rows, -1)
    elif scales.numel() == 1:
        scales = scales.view(1, 1)
    else:
        scales = scales.view(rows, 1)
    if "zero" in stored:  # (8 - z) * scale, beside codes less 8
        zero_points = 8 - stored["zero"].float().t() / scales
        codes_OI = (codes_OI + 8).to(torch.uint8)
    factor = stored.get("prequant_scaling_factor")
    if "smoother" in stored:
        factor = stored["smoother"].float().reciprocal()
    return QuantizedLinear(
        codes_OI,
        scales,
        bits=4 if algo in (*ROW_PAIRS, NVFP4) else 8,
        zero_points=zero_points,
        pre_quant_scale=None if factor is None else factor.view(columns),
        input_scale=_scalar(stored, "activation_scaling_factor"),
        weight_scale_2=_scalar(stored, "weights_scaling_factor_2"),
    )


def experts(stored: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors of each expert from those of all, which have one more dimension in front.

    The runtime multiplies the input of every expert by the first one's `prequant_scaling_factor`; so does
    this.
    """
    count = len(stored["weight"])
    for expert in range(count):
        yield {name: _of_expert(name, tensor, expert, count) for name, tensor in stored.items()}


def _of_expert(name: str, tensor: Tensor, expert: int, count: int) -> Tensor:
    if tensor.dim() == 0 or len(tensor) != count:
        return tensor  # one for all experts
    return tensor[0 if name == "prequant_scaling_factor" else expert]


def rows(linear: QuantizedLinear | Tensor, part: slice) -> QuantizedLinear | Tensor:
    """Some of the output channels of a linear, without a copy."""
    if isinstance(linear, Tensor):
        return linear[part]
    cut = linear.scales[part] if len(linear.scales) == linear.out_features else linear.scales
    zero_points = None if linear.zero_points is None else linear.zero_points[part]
    return replace(linear, codes=linear.codes[part], scales=cut, zero_points=zero_points)


def _scalar(stored: Mapping[str, Tensor], name: str) -> Tensor | None:
    return stored[name].reshape(()) if name in stored else None


def _error(where: str, why: str) -> ModelError:
    return ModelError(
        "the tensors of a linear do not fit together", where=where, why=why, fix="convert the model again"
    )
