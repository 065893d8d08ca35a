"""Quantized linears as TensorRT-LLM stores them before `trtllm-build` prepares them for one GPU.

    quant_algo                 weight             beside it
    none, W8A16                dtype [out, in]
    W4A16_AWQ                  int8 [out / 2, in]  weights_scaling_factor f32 [out, in / group],
                                                  prequant_scaling_factor dtype [in]
    W4A8_AWQ                   int8 [out / 2, in]  the same, activation_scaling_factor f32 [1],
                                                  weights_scaling_factor_2 f32 [1]
    FP8                        e4m3 [out, in]     weights_scaling_factor f32 [1],
                                                  activation_scaling_factor f32 [1]
    FP8_PER_CHANNEL_PER_TOKEN  e4m3 [out, in]     per_channel_scale f32 [out]
    W8A8_SQ_PER_CHANNEL        int8 [out, in]     weights_scaling_factor f32 [out],
                                                  activation_scaling_factor f32 [1],
                                                  prequant_scaling_factor dtype [in]
    NVFP4                      uint8 [out, in / 2]  weights_scaling_factor e4m3 [out, in / 16],
                                                  weights_scaling_factor_2 f32 [1],
                                                  activation_scaling_factor f32 [1]

W8A16 is stored as the weights that the codes stand for: TensorRT-LLM quantizes them itself, since its own
codes are in an order that belongs to one GPU generation. Everything else is stored without any rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantize.formats.base import FP8, FP8_ROWWISE, INT8_SQ, INT8_WO, NVFP4, W4A8_AWQ, W4A16_AWQ, LinearScheme
from quantize.formats.packing import pack_fp4, pack_int4_rows
from quantize.linear import QuantizedLinear
from toolchain.errors import BuildError

ALGOS = (W4A16_AWQ, W4A8_AWQ, FP8, FP8_ROWWISE, INT8_SQ, INT8_WO, NVFP4)
"""Every quant_algo that can be stored."""
GROUPWISE = (W4A16_AWQ, W4A8_AWQ)
"""Those whose kernels want groups and widths of certain sizes."""
OF_EXPERTS = (W4A16_AWQ, W4A8_AWQ, FP8, INT8_WO, NVFP4)
"""Those that experts can have: NVIDIA's exporter has no rank files of experts with the others."""
_LARGEST_FP8 = 448.0

WEIGHT, BIAS = "weight", "bias"
SCALES, CHANNEL_SCALES, SCALE_2 = (
    "weights_scaling_factor",
    "per_channel_scale",
    "weights_scaling_factor_2",
)
ACTIVATION, PRE_QUANT = "activation_scaling_factor", "prequant_scaling_factor"


@dataclass(frozen=True)
class Kind:
    """A tensor of a module: its dtype (safetensors' name, or None for the model's) and its shape.

    Args:
        dtype: of its elements.
        shape: of the whole module on one rank.
        by_rows: whether its first dimension belongs to the output channels, so that those of fused linears
            follow each other; if not, they have it in common.
    """

    dtype: str | None
    shape: tuple[int, ...]
    by_rows: bool


def kinds(scheme: LinearScheme | None, rows: int, columns: int) -> dict[str, Kind]:
    """The tensors of a linear [rows, columns] by name, bias aside: the table above."""
    algo, group_size = (None, None) if scheme is None else (scheme.quant_algo, scheme.group_size)
    scalar, pre_quant = Kind("F32", (1,), False), Kind(None, (columns,), False)
    if algo in (None, INT8_WO):
        return {WEIGHT: Kind(None, (rows, columns), True)}
    if algo == FP8:
        return {WEIGHT: Kind("F8_E4M3", (rows, columns), True), SCALES: scalar, ACTIVATION: scalar}
    if algo == FP8_ROWWISE:
        return {
            WEIGHT: Kind("F8_E4M3", (rows, columns), True),
            CHANNEL_SCALES: Kind("F32", (rows,), True),
        }
    if algo == INT8_SQ:
        return {
            WEIGHT: Kind("I8", (rows, columns), True),
            SCALES: Kind("F32", (rows,), True),
            ACTIVATION: scalar,
            PRE_QUANT: pre_quant,
        }
    assert group_size is not None
    if algo == NVFP4:
        return {
            WEIGHT: Kind("U8", (rows, columns // 2), True),
            SCALES: Kind("F8_E4M3", (rows, columns // group_size), True),
            SCALE_2: scalar,
            ACTIVATION: scalar,
        }
    found = {
        WEIGHT: Kind("I8", (rows // 2, columns), True),
        SCALES: Kind("F32", (rows, columns // group_size), True),
        PRE_QUANT: pre_quant,
    }
    return found | ({ACTIVATION: scalar, SCALE_2: scalar} if algo == W4A8_AWQ else {})


def encode(
    scheme: LinearScheme | None, linear: QuantizedLinear | Tensor, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of a linear, or of a part of one, by name; see the table above.

    Args:
        scheme: how it is quantized; None for a plain weight.
        linear: what `cut` and `unify` gave.
        dtype: the model's, of plain weights and pre-quant scales.
    """
    if scheme is None or isinstance(linear, Tensor):
        assert isinstance(linear, Tensor)
        return {WEIGHT: linear.to(dtype)}
    algo = scheme.quant_algo
    if algo == INT8_WO:
        return {WEIGHT: linear.dequantize(dtype)}
    scales = linear.scales.float()
    if algo == FP8:
        return {WEIGHT: linear.codes, SCALES: scales.view(1), ACTIVATION: _scalar(linear.input_scale)}
    if algo == FP8_ROWWISE:
        return {WEIGHT: linear.codes, CHANNEL_SCALES: scales.reshape(-1)}
    if algo == INT8_SQ:
        return {
            WEIGHT: linear.codes,
            SCALES: scales.reshape(-1),
            ACTIVATION: _scalar(linear.input_scale),
            PRE_QUANT: _pre_quant_scale(linear, dtype),
        }
    if algo == NVFP4:
        return {
            WEIGHT: pack_fp4(linear.codes),
            SCALES: scales.to(torch.float8_e4m3fn),
            SCALE_2: _scalar(linear.weight_scale_2),
            ACTIVATION: _scalar(linear.input_scale),
        }
    found = {
        WEIGHT: pack_int4_rows(linear.codes).view(torch.int8),
        SCALES: scales,
        PRE_QUANT: _pre_quant_scale(linear, dtype),
    }
    if algo == W4A8_AWQ:
        found |= {ACTIVATION: _scalar(linear.input_scale), SCALE_2: _scalar(linear.weight_scale_2)}
    return found


def cut(linear: QuantizedLinear | Tensor, rows: slice, columns: slice) -> QuantizedLinear | Tensor:
    """The part of a linear with these output and input channels; groups of scales are whole."""
    if isinstance(linear, Tensor):
        return linear[rows, columns]
    scales = linear.scales
    if scales.shape[0] > 1 or linear.out_features == 1:
        scales = scales[rows]
    if scales.shape[1] > 1:
        size = linear.group_size
        scales = scales[:, columns.start // size : columns.stop // size]
    pre_quant = linear.pre_quant_scale
    return replace(
        linear,
        codes=linear.codes[rows, columns],
        scales=scales,
        pre_quant_scale=None if pre_quant is None else pre_quant[columns],
    )


def regrouped(linear: QuantizedLinear, group_size: int) -> QuantizedLinear:
    """A linear with a scale per output channel, told as groups that repeat it; any other as it is."""
    if linear.scales.shape[1] != 1 or linear.is_fp4:
        return linear
    shape = linear.out_features, linear.in_features // group_size
    return replace(linear, scales=linear.scales.expand(shape))


def unify(
    algo: str, linears: Mapping[str, QuantizedLinear], fused: Sequence[Sequence[str]], where: str
) -> tuple[dict[str, QuantizedLinear], bool]:
    """Give linears that read one input the scalars that they have in common in an engine.

    Activation scales and FP8's weight scales become the largest; codes whose scale grows are rounded again.
    The other scales of fused linears must be the same.

    Args:
        algo: how they are quantized.
        linears: by name.
        fused: the names of those that make up one module, for each module.
        where: names the layer in errors.

    Returns:
        the linears, and whether codes were rounded again.

    Raises:
        BuildError: fused linears differ in what an engine has once.
    """
    found, rounded = dict(linears), False
    if algo in (FP8, INT8_SQ, W4A8_AWQ, NVFP4):
        _require(algo, found, "input_scale", where)
        # What a pre-quant scale multiplies differs from linear to linear.
        for names in [list(linears)] if algo in (FP8, NVFP4) else fused:
            largest = torch.stack([_scalar(found[name].input_scale) for name in names]).amax()
            found |= {name: replace(found[name], input_scale=largest) for name in names}
    if algo == FP8:
        scale = torch.stack([own.scales.float().view(1) for own in found.values()]).amax().view(1, 1)
        rounded = any(not torch.equal(own.scales, scale) for own in found.values())
        found = {name: _rescaled(own, scale) for name, own in found.items()}
    for names in fused:
        own = {name: found[name] for name in names}
        if algo == W4A8_AWQ:
            _require(algo, own, "weight_scale_2", where)
            second = torch.stack([_scalar(linear.weight_scale_2) for linear in own.values()]).amax()
            found |= {name: replace(linear, weight_scale_2=second) for name, linear in own.items()}
        elif algo == NVFP4:
            _require(algo, own, "weight_scale_2", where)
            _same(own, "weight_scale_2", where)
        if algo in (W4A16_AWQ, W4A8_AWQ, INT8_SQ):
            _same(own, "pre_quant_scale", where)
    return found, rounded


def check_values(algo: str, linear: QuantizedLinear, dtype: torch.dtype, module: str) -> None:
    """Raise BuildError for values that an engine would silently compute nonsense with.

    They are NaN codes, scales that are not finite, scalars that are not above zero, and pre-quant scales that
    the model's `dtype` does not hold.
    """
    problem = None
    if algo in (FP8, FP8_ROWWISE) and bool(((linear.codes.view(torch.uint8) & 0x7F) == 0x7F).any()):
        problem = "a weight is NaN"
    if not bool(linear.scales.float().isfinite().all()):
        problem = "a scale is NaN or infinite"
    elif algo == FP8 and not bool((linear.scales > 0).all()):
        problem = "the scale of the weights is not above zero"
    for scale in (linear.input_scale, linear.weight_scale_2):
        if scale is not None and not (bool(scale.isfinite().all()) and bool((scale > 0).all())):
            problem = "a scalar scale is not a number above zero"
    pre_quant = linear.pre_quant_scale
    if pre_quant is not None and not bool(pre_quant.float().isfinite().all()):
        problem = "a pre_quant_scale is NaN or infinite"
    elif pre_quant is not None and not torch.equal(pre_quant.to(dtype).double(), pre_quant.double()):
        problem = f"a pre_quant_scale is no number of {str(dtype).removeprefix('torch.')}"
    if problem is not None:
        raise BuildError(problem, where=module, fix="quantize the model again")


def _rescaled(linear: QuantizedLinear, scale: Tensor) -> QuantizedLinear:
    if torch.equal(linear.scales, scale):
        return linear
    values = linear.codes.float() * (linear.scales.float() / scale)
    codes = values.clamp(-_LARGEST_FP8, _LARGEST_FP8).to(torch.float8_e4m3fn)
    return replace(linear, codes=codes, scales=scale)


def _scalar(scale: Tensor | None) -> Tensor:
    assert scale is not None  # `unify` sees to it
    return scale.float().view(1)


def _pre_quant_scale(linear: QuantizedLinear, dtype: torch.dtype) -> Tensor:
    if linear.pre_quant_scale is None:
        return torch.ones(linear.in_features, dtype=dtype)
    return linear.pre_quant_scale.to(dtype)


def _require(algo: str, linears: Mapping[str, QuantizedLinear], field: str, where: str) -> None:
    for name, linear in linears.items():
        if getattr(linear, field) is None:
            raise BuildError(
                f"the linear has no {field}, which {algo} needs",
                where=f"{where}{name}",
                fix="quantize the model again",
            )


def _same(linears: Mapping[str, QuantizedLinear], field: str, where: str) -> None:
    (first, one), *others = linears.items()
    value = getattr(one, field)
    for name, other in others:
        theirs = getattr(other, field)
        if (value is None) != (theirs is None) or (value is not None and not torch.equal(value, theirs)):
            raise BuildError(
                f"{first} and {name} have a {field} each",
                where=where.removesuffix("."),
                why="an engine multiplies them as one matrix, which has one",
                fix="quantize the model again with llmbuild, which gives them one",
            )
