"""The form of compressed-tensors: what llm-compressor writes, and vLLM, SGLang and transformers read.

    pack-quantized          weight_packed int32 [out, in * bits / 32], weight_shape i64 [2],
                            weight_scale [out, groups], weight_zero_point int32 [out * bits / 32, groups]
    int-quantized           weight int8 [out, in], weight_scale [out, 1], input_scale [1]
    float-quantized         weight e4m3 [out, in], weight_scale [out, 1] or [1], input_scale [1]
    nvfp4-pack-quantized    weight_packed uint8 [out, in / 2], weight_scale e4m3 [out, in / 16],
                            weight_global_scale f32 [1], input_global_scale f32 [1]

Codes and zero points of pack-quantized are counted from 0 up; global scales are the reciprocals of ModelOpt's
weight_scale_2 and input_scale. Scales are stored in the model's dtype where it holds them exactly, or else in
float32. Groups of scattered channels (`weight_g_idx`) are read, but not written: compressed-tensors 0.19 has
no such tensor any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantize.formats.base import (
    FP8,
    INT8_SQ,
    NVFP4,
    NVFP4_WO,
    WEIGHT_ONLY,
    Description,
    Layout,
    LinearScheme,
    Part,
    Scheme,
    group_count,
)
from quantize.formats.ct_config import TENSOR, describe, form_of, read_groups, read_kv_cache
from quantize.formats.packing import pack_fp4, pack_words, unpack_fp4, unpack_words, word_count
from quantize.formats.unsigned import from_unsigned, unsigned
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, QuantizeError
from toolchain.model.checkpoint import Checkpoint

_FP4 = (NVFP4, NVFP4_WO)
_ONE = Part((1,))


class CompressedTensors:
    """The `Format` of compressed-tensors."""

    name = "compressed-tensors"
    holds_pre_quant_scale = False

    def recognises(self, directory: Path, config: Mapping[str, Any]) -> bool:
        """By quant_method."""
        described = config.get("quantization_config")
        return isinstance(described, dict) and described.get("quant_method") == "compressed-tensors"

    def scheme(self, directory: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> Scheme:
        """From the groups of the configuration, for each module that has scales."""
        described, where = config["quantization_config"], str(directory / "config.json")
        groups = read_groups(described, where)
        linears = {}
        for name in checkpoint.names:
            module, _, tensor = name.rpartition(".")
            if tensor != "weight_scale":
                continue
            group = next((group for group in groups if group.matches(module)), None)
            if group is None:
                raise ModelError(
                    "the linear has scales, but no group of the configuration is about it",
                    where=f"{directory}: {module}",
                    fix="download the checkpoint again",
                )
            linears[module] = group.scheme
        ignored = described.get("ignore") or ()
        return Scheme(linears, tuple(map(str, ignored)), read_kv_cache(described, where))

    def layout(self, scheme: LinearScheme, rows: int, columns: int) -> Layout:
        """See the table above."""
        bias = {"bias": Part((rows,))}
        if scheme.quant_algo in _FP4:
            groups = group_count(columns, 16, "a linear in NVFP4")
            parts = {
                "weight_packed": Part((rows, columns // 2), ("U8",)),
                "weight_scale": Part((rows, groups), ("F8_E4M3",)),
                "weight_global_scale": _ONE,
            }
            if scheme.quant_algo == NVFP4:
                parts["input_global_scale"] = _ONE
            return Layout(parts, bias)
        groups = group_count(columns, scheme.group_size, "a linear of compressed-tensors")
        whole = scheme.quant_algo == FP8 or scheme.variant == TENSOR
        parts = {"weight_scale": _ONE if whole else Part((rows, groups))}
        if scheme.quant_algo in WEIGHT_ONLY:
            parts["weight_packed"] = Part((rows, word_count(columns, scheme.bits)), ("I32",))
            parts["weight_shape"] = Part((2,), ("I64", "I32"))
            if scheme.zero_point:
                parts["weight_zero_point"] = Part((word_count(rows, scheme.bits), groups), ("I32",))
            if scheme.act_order:
                parts["weight_g_idx"] = Part((columns,), ("I32", "I64"))
            return Layout(parts, bias)
        integer = form_of(scheme) == "int-quantized"
        parts["weight"] = Part((rows, columns), ("I8",) if integer else ("F8_E4M3",))
        if scheme.quant_algo in (FP8, INT8_SQ):
            parts["input_scale"] = _ONE
        return Layout(parts, bias)

    def read_linear(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        """The linear `module`, bias included."""
        self.layout(scheme, *_weight_shape(checkpoint, module, scheme)).check(checkpoint, module)

        def read(name: str) -> Tensor:
            return checkpoint.read(f"{module}.{name}")

        bias = read("bias") if f"{module}.bias" in checkpoint else None
        if scheme.quant_algo in _FP4:
            return QuantizedLinear(
                unpack_fp4(read("weight_packed")),
                read("weight_scale").float(),
                bits=4,
                input_scale=_inverse(read("input_global_scale")) if scheme.quant_algo == NVFP4 else None,
                weight_scale_2=_inverse(read("weight_global_scale")),
                bias=bias,
            )
        if scheme.quant_algo in WEIGHT_ONLY:
            return _read_packed(checkpoint, module, scheme, bias)
        codes_OI, scales_OG = read("weight"), read("weight_scale").float().reshape(-1, 1)
        if scheme.quant_algo != FP8:
            scales_OG = scales_OG.expand(codes_OI.shape[0], 1).contiguous()
        static = read("input_scale").float().reshape(()) if f"{module}.input_scale" in checkpoint else None
        return QuantizedLinear(codes_OI, scales_OG, bits=8, input_scale=static, bias=bias)

    def kv_scales(self, checkpoint: Checkpoint, layer_prefix: str) -> tuple[Tensor, Tensor] | None:
        """`self_attn.k_scale` and `self_attn.v_scale`."""
        names = [f"{layer_prefix}self_attn.{which}_scale" for which in "kv"]
        if not all(name in checkpoint for name in names):
            return None
        first, second = (checkpoint.read(name).float().reshape(()) for name in names)
        return first, second

    def problems(self, scheme: Scheme) -> list[str]:
        """Scattered groups, and algorithms that it has no arguments for."""
        found = []
        for linear in scheme.distinct:
            if form_of(linear) is None:
                found.append(f"compressed-tensors has no {linear.quant_algo}")
            if linear.act_order:
                found.append("compressed-tensors 0.19 has no g_idx: groups are consecutive channels")
        return list(dict.fromkeys(found))

    def linear_tensors(
        self, module: str, linear: QuantizedLinear, scheme: LinearScheme, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """See the table above."""
        if scheme.quant_algo in _FP4:
            tensors = _fp4_tensors(linear, module)
        elif scheme.quant_algo in WEIGHT_ONLY:
            codes_OI, zeros_OG = unsigned(linear, module)
            tensors = {
                "weight_packed": pack_words(codes_OI, linear.bits),
                "weight_scale": _exactly(linear.scales, dtype),
                "weight_shape": torch.tensor(linear.codes.shape),
            }
            if scheme.zero_point:
                tensors["weight_zero_point"] = pack_words(zeros_OG.T, linear.bits).T.contiguous()
        else:
            whole = scheme.quant_algo == FP8
            scales = linear.scales.reshape(1) if whole else linear.scales
            tensors = {"weight": linear.codes, "weight_scale": _exactly(scales, dtype)}
            if linear.input_scale is not None:
                tensors["input_scale"] = _exactly(linear.input_scale.float().reshape(1), dtype)
        if linear.bias is not None:
            tensors["bias"] = linear.bias
        return {f"{module}.{name}": tensor for name, tensor in tensors.items()}

    def kv_tensors(self, layer_prefix: str, k_scale: Tensor, v_scale: Tensor) -> dict[str, Tensor]:
        """Float32, one value each, beside the attention."""
        return {
            f"{layer_prefix}self_attn.k_scale": k_scale.float().reshape(1),
            f"{layer_prefix}self_attn.v_scale": v_scale.float().reshape(1),
        }

    def describe(self, scheme: Scheme) -> Description:
        """As compressed-tensors 0.19 describes it."""
        return Description(describe(scheme))


def _weight_shape(checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> tuple[int, int]:
    """Output and input channels of the weight, as the tensors tell."""
    where = f"{checkpoint.model_dir}: {module}"
    packed = scheme.quant_algo in WEIGHT_ONLY or scheme.quant_algo in _FP4
    shape = checkpoint.shape(f"{module}.{'weight_packed' if packed else 'weight'}")
    if scheme.quant_algo in WEIGHT_ONLY:
        stored = checkpoint.read(f"{module}.weight_shape").tolist()
        shape = tuple(stored) if isinstance(stored, list) else ()
    elif packed and len(shape) == 2:
        shape = shape[0], 2 * shape[1]
    if len(shape) != 2:
        raise ModelError(
            f"the weight's shape is {list(shape)}, which is not that of a matrix",
            where=where,
            fix="download the checkpoint again",
        )
    return shape[0], shape[1]


def _read_packed(
    checkpoint: Checkpoint, module: str, scheme: LinearScheme, bias: Tensor | None
) -> QuantizedLinear:
    rows, columns = _weight_shape(checkpoint, module, scheme)
    where = f"{checkpoint.model_dir}: {module}"
    groups = group_count(columns, scheme.group_size, where)
    zeros_OG = None
    if scheme.zero_point:
        words_GW = checkpoint.read(f"{module}.weight_zero_point").T
        zeros_OG = unpack_words(words_GW, scheme.bits)[:, :rows].T
    index_I = None
    if scheme.act_order:
        index_I = checkpoint.read(f"{module}.weight_g_idx").long()
        if bool(((index_I < 0) | (index_I >= groups)).any()):
            raise ModelError(
                f"weight_g_idx must be below {groups}", where=where, fix="download the checkpoint again"
            )
    return from_unsigned(
        unpack_words(checkpoint.read(f"{module}.weight_packed"), scheme.bits)[:, :columns],
        zeros_OG,
        checkpoint.read(f"{module}.weight_scale").reshape(-1, groups).expand(rows, groups),
        scheme.bits,
        symmetric=not scheme.zero_point,
        where=where,
        group_index=index_I,
        bias=bias,
    )


def _fp4_tensors(linear: QuantizedLinear, module: str) -> dict[str, Tensor]:
    scales_OG = linear.scales.to(torch.float8_e4m3fn)
    if not torch.equal(scales_OG.float(), linear.scales):
        raise QuantizeError(
            "a scale of the groups is not a number of float8_e4m3fn",
            where=module,
            why="that is the type in which NVFP4 stores them",
            fix="quantize the model again",
        )
    one = torch.ones(())
    tensors = {
        "weight_packed": pack_fp4(linear.codes),
        "weight_scale": scales_OG,
        "weight_global_scale": _reciprocal(one if linear.weight_scale_2 is None else linear.weight_scale_2),
    }
    if linear.input_scale is not None:
        tensors["input_global_scale"] = _reciprocal(linear.input_scale)
    return tensors


def _inverse(global_scale: Tensor) -> Tensor:
    """The float32 scalar that a global scale [1] divides by."""
    return 1 / global_scale.float().reshape(())


def _reciprocal(scale: Tensor) -> Tensor:
    """The float32 [1] whose reciprocal, as a reader computes it, is `scale`, or the nearest there is."""
    wanted = scale.float().reshape(1)
    nearest = 1 / wanted
    for candidate in (nearest, nearest.nextafter(nearest + 1), nearest.nextafter(nearest - 1)):
        if torch.equal(1 / candidate, wanted):
            return candidate
    return nearest


def _exactly(scales: Tensor, dtype: torch.dtype) -> Tensor:
    """`scales` in `dtype` if that holds every one of them, or else in float32."""
    stored = scales.to(dtype)
    return stored if torch.equal(stored.float(), scales) else scales
