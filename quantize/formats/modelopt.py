"""ModelOpt's unified Hugging Face form: the checkpoint that every flavour starts from.

A plain checkpoint whose quantized linears hold codes and scales in place of the weight, described by
`hf_quant_config.json` and by `quantization_config` in `config.json`. What nvidia-modelopt 0.47 writes is what
is written here; TensorRT-LLM's PyTorch backend and vLLM read it.

    quant_algo                 weight                    beside it
    FP8                        e4m3 [out, in]            weight_scale f32 [], input_scale f32 []
    FP8_PER_CHANNEL_PER_TOKEN  e4m3 [out, in]            weight_scale f32 [out]
    W8A8_SQ_PER_CHANNEL        int8 [out, in]            weight_scale f32 [out], input_scale f32 [],
                                                         pre_quant_scale [in]
    W8A16                      int8 [out, in]            weight_scale f32 [out]
    W4A16_AWQ                  uint8 [out / 2, in]       weight_scale f32 [out, in / group],
                                                         pre_quant_scale [in] of o_proj and down_proj
    W4A8_AWQ                   uint8 [out / 2, in]       the same, input_scale f32 [], weight_scale_2 f32 []
    NVFP4                      uint8 [out, in / 2]       weight_scale e4m3 [out, in / 16],
                                                         weight_scale_2 f32 [], input_scale f32 []
    W4A16_NVFP4                uint8 [out, in / 2]       the same without input_scale
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantize.formats.base import (
    FP8,
    FP8_ROWWISE,
    INT8_SQ,
    INT8_WO,
    MIXED,
    NVFP4,
    NVFP4_WO,
    W4A8_AWQ,
    W4A16_AWQ,
    Description,
    Layout,
    LinearScheme,
    Part,
    Scheme,
    group_count,
)
from quantize.formats.packing import pack_fp4, pack_int4_rows, unpack_fp4, unpack_int4_rows
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.config_json import read_json_object

QUANT_CONFIG_FILE = "hf_quant_config.json"

# Loaders recognise the form by this name; the version is that of the form's writer that is followed here.
_PRODUCER = {"name": "modelopt", "version": "0.47.0"}

_ALGOS = {
    W4A16_AWQ: 4,
    W4A8_AWQ: 4,
    FP8: 8,
    FP8_ROWWISE: 8,
    INT8_SQ: 8,
    INT8_WO: 8,
    NVFP4: 4,
    NVFP4_WO: 4,
}
"""quant_algo -> bits of a code."""
_ROW_PAIRS = (W4A16_AWQ, W4A8_AWQ)
_FP4 = (NVFP4, NVFP4_WO)
_FLOAT = {"dynamic": False, "num_bits": 8, "type": "float"}


class ModelOpt:
    """The `Format` of nvidia-modelopt's `export_hf_checkpoint`."""

    name = "modelopt"
    holds_pre_quant_scale = True

    def recognises(self, directory: Path, config: Mapping[str, Any]) -> bool:
        """By `hf_quant_config.json`, or by quant_method."""
        described = config.get("quantization_config")
        return (directory / QUANT_CONFIG_FILE).exists() or (
            isinstance(described, dict) and described.get("quant_method") == "modelopt"
        )

    def scheme(self, directory: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> Scheme:
        """From `hf_quant_config.json` if it is there, or else from `config.json`."""
        description = _description(directory, config)
        if description.get("has_zero_point"):
            raise ModelError(
                "the checkpoint has zero points, which its form does not store",
                where=str(directory),
                fix="start from the unquantized model",
            )
        algo = description.get("quant_algo")
        layers = description.get("quantized_layers", {}) if algo == MIXED else {}
        linears = {}
        for name in checkpoint.names:
            module, _, tensor = name.rpartition(".")
            if tensor != "weight_scale":
                continue
            own = layers.get(module, {}) if algo == MIXED else description
            linears[module] = _linear_scheme(directory, module, own, checkpoint)
        return Scheme(
            linears, tuple(description.get("exclude_modules") or ()), description.get("kv_cache_quant_algo")
        )

    def layout(self, scheme: LinearScheme, rows: int, columns: int) -> Layout:
        """See the table above."""
        algo, groups = (
            scheme.quant_algo,
            group_count(columns, scheme.group_size, "a linear in ModelOpt's form"),
        )
        scalar = Part((), ("F32",))
        optional = {
            "pre_quant_scale": Part((columns,)),
            "input_scale": scalar,
            "weight_scale_2": scalar,
            "bias": Part((rows,)),
        }
        if algo in _ROW_PAIRS:
            required = {
                "weight": Part((rows // 2, columns), ("U8", "I8")),
                "weight_scale": Part((rows, groups)),
            }
        elif algo in _FP4:
            required = {
                "weight": Part((rows, columns // 2), ("U8",)),
                "weight_scale": Part((rows, groups), ("F8_E4M3",)),
                "weight_scale_2": scalar,
            }
        else:
            integer = algo in (INT8_SQ, INT8_WO)
            required = {
                "weight": Part((rows, columns), ("I8",) if integer else ("F8_E4M3",)),
                "weight_scale": scalar if algo == FP8 else Part((rows,)),
            }
        return Layout(required, {name: part for name, part in optional.items() if name not in required})

    def read_linear(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        """The linear `module`, bias included."""
        shape = checkpoint.shape(f"{module}.weight")
        rows, columns = shape if len(shape) == 2 else (0, 0)
        if scheme.quant_algo in _ROW_PAIRS:
            rows *= 2
        elif scheme.quant_algo in _FP4:
            columns *= 2
        self.layout(scheme, rows, columns).check(checkpoint, module)
        codes_OI = checkpoint.read(f"{module}.weight")
        if scheme.quant_algo in _ROW_PAIRS:
            codes_OI = unpack_int4_rows(codes_OI)
        elif scheme.quant_algo in _FP4:
            codes_OI = unpack_fp4(codes_OI)
        scales = checkpoint.read(f"{module}.weight_scale").float()

        def optional(name: str) -> Tensor | None:
            return checkpoint.read(f"{module}.{name}") if f"{module}.{name}" in checkpoint else None

        return QuantizedLinear(
            codes_OI,
            scales.view(-1, 1) if scales.dim() < 2 else scales,
            bits=scheme.bits,
            pre_quant_scale=optional("pre_quant_scale"),
            input_scale=optional("input_scale"),
            weight_scale_2=optional("weight_scale_2"),
            bias=optional("bias"),
        )

    def kv_scales(self, checkpoint: Checkpoint, layer_prefix: str) -> tuple[Tensor, Tensor] | None:
        """`k_proj.k_scale` and `v_proj.v_scale`."""
        names = [f"{layer_prefix}self_attn.{which}_proj.{which}_scale" for which in "kv"]
        if not all(name in checkpoint for name in names):
            return None
        return checkpoint.read(names[0]), checkpoint.read(names[1])

    def problems(self, scheme: Scheme) -> list[str]:
        """Zero points, scattered groups, and algorithms that it has no name for."""
        found = []
        for linear in scheme.distinct:
            if linear.quant_algo not in _ALGOS:
                found.append(f"ModelOpt's form has no {linear.quant_algo}")
            if linear.zero_point:
                found.append("ModelOpt's form has no zero points: it holds symmetric codes only")
            if linear.act_order:
                found.append("ModelOpt's form has no g_idx: groups are consecutive channels")
            if linear.bits != _ALGOS.get(linear.quant_algo, linear.bits):
                found.append(f"ModelOpt's {linear.quant_algo} has no codes of {linear.bits} bits")
        return list(dict.fromkeys(found))

    def linear_tensors(
        self, module: str, linear: QuantizedLinear, scheme: LinearScheme, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """See the table above."""
        scales = linear.scales
        if scheme.quant_algo in _ROW_PAIRS:
            if linear.out_features % 2:
                raise QuantizeError(
                    f"ModelOpt's form stores output channels in pairs, and there are {linear.out_features}",
                    where=module,
                    fix="exclude the linear",
                )
            weight = pack_int4_rows(linear.codes)
        elif scheme.quant_algo in _FP4:
            weight, scales = pack_fp4(linear.codes), scales.to(torch.float8_e4m3fn)
        else:
            weight = linear.codes
            scales = scales.reshape(()) if scheme.quant_algo == FP8 else scales.reshape(-1)
        tensors: dict[str, Tensor | None] = {"weight": weight, "weight_scale": scales}
        for name in ("pre_quant_scale", "input_scale", "weight_scale_2", "bias"):
            tensors[name] = getattr(linear, name)
        return {f"{module}.{name}": tensor for name, tensor in tensors.items() if tensor is not None}

    def kv_tensors(self, layer_prefix: str, k_scale: Tensor, v_scale: Tensor) -> dict[str, Tensor]:
        """Float32 scalars beside the projections."""
        return {
            f"{layer_prefix}self_attn.k_proj.k_scale": k_scale,
            f"{layer_prefix}self_attn.v_proj.v_scale": v_scale,
        }

    def describe(self, scheme: Scheme) -> Description:
        """As nvidia-modelopt 0.47 describes it, key by key."""
        algo, exclude = scheme.quant_algo, list(scheme.exclude_modules)
        quantization: dict[str, Any] = {"quant_algo": algo, "kv_cache_quant_algo": scheme.kv_cache_quant_algo}
        inline: dict[str, Any] = {}
        if algo == MIXED:
            layers = {module: _facts(linear) for module, linear in scheme.linears.items()}
            quantization["quantized_layers"] = layers
            inline["config_groups"] = _config_groups(scheme)
            inline["quantized_layers"] = layers
        elif scheme.distinct:
            quantization |= _facts(scheme.distinct[0])
            if algo in (FP8, *_FP4):
                group = _config_group(scheme.distinct[0]) | {"targets": ["Linear"]}
                inline["config_groups"] = {"group_0": group}
        quantization["exclude_modules"] = exclude
        inline |= {"ignore": exclude, "quant_algo": algo}
        if scheme.kv_cache_quant_algo:
            fp8 = scheme.kv_cache_quant_algo == FP8
            inline["kv_cache_scheme"] = dict(_FLOAT) if fp8 else scheme.kv_cache_quant_algo
        inline |= {"producer": _PRODUCER, "quant_method": "modelopt"}
        return Description(inline, {QUANT_CONFIG_FILE: {"producer": _PRODUCER, "quantization": quantization}})


def _linear_scheme(
    directory: Path, module: str, own: Mapping[str, Any], checkpoint: Checkpoint
) -> LinearScheme:
    """What the description says of a linear. Early versions left out the group size: its scales tell."""
    algo, where = own.get("quant_algo"), f"{directory}: {module}"
    if algo not in _ALGOS:
        raise ModelError(
            f"the checkpoint is quantized as {algo}, which cannot be read",
            where=where,
            why=f"readable are plain checkpoints and {', '.join(_ALGOS)}",
            fix="start from the unquantized model",
        )
    if _ALGOS[algo] != 4:
        return LinearScheme(algo, bits=_ALGOS[algo])
    group = own.get("group_size")
    shape = checkpoint.shape(f"{module}.weight_scale")
    if not group and len(shape) == 2 and shape[1]:
        columns = checkpoint.shape(f"{module}.weight")[-1] * (2 if algo in _FP4 else 1)
        group = columns // shape[1]
    if type(group) is not int or group < 1:
        raise ModelError(
            f"the group size is {group!r}, not a positive number", where=where, fix="quantize the model again"
        )
    return LinearScheme(algo, group, bits=_ALGOS[algo])


def _facts(linear: LinearScheme) -> dict[str, Any]:
    """What `quantized_layers`, or `quantization` itself, says of a linear."""
    facts: dict[str, Any] = {"quant_algo": linear.quant_algo}
    if linear.group_size is not None:
        facts["group_size"] = linear.group_size
    if linear.quant_algo in _ROW_PAIRS:
        facts |= {"has_zero_point": False, "pre_quant_scale": True}
    return facts


def _config_groups(scheme: Scheme) -> dict[str, Any]:
    """A group for each kind of linear, in the words of compressed-tensors."""
    return {
        f"group_{number}": _config_group(kind)
        | {"targets": sorted(module for module, own in scheme.linears.items() if own == kind)}
        for number, kind in enumerate(scheme.distinct)
    }


def _config_group(linear: LinearScheme) -> dict[str, Any]:
    algo, group = linear.quant_algo, {"group_size": linear.group_size}
    activations: dict[str, Any] | None = None
    if algo == W4A16_AWQ:
        weights: dict[str, Any] = {"dynamic": False, "num_bits": 4, "type": "int"} | group
    elif algo == W4A8_AWQ:
        activations, weights = _FLOAT | group, {"dynamic": False, "num_bits": 4, "type": "float"} | group
    elif algo in _FP4:
        weights = {"dynamic": False, "num_bits": 4, "type": "float"} | group
        activations = weights if algo == NVFP4 else None
    elif algo == INT8_WO:
        weights = {"dynamic": False, "num_bits": 8, "type": "int"}
    elif algo == INT8_SQ:
        activations = {"dynamic": False, "num_bits": 8, "type": "int"}
        weights = activations | {"strategy": "channel"}
    else:
        activations = dict(_FLOAT)
        weights = _FLOAT | ({"strategy": "channel"} if algo == FP8_ROWWISE else {})
    return ({"input_activations": dict(activations)} if activations is not None else {}) | {
        "weights": dict(weights)
    }


def _description(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the directory says of its quantization."""
    file = directory / QUANT_CONFIG_FILE
    if file.exists():
        description = read_json_object(file).get("quantization")
        if not isinstance(description, dict):
            raise ModelError(
                "there is no object `quantization`", where=str(file), fix="quantize the model again"
            )
        return description
    described = config["quantization_config"]
    inline = described.get("quantization")
    description = dict(inline) if isinstance(inline, dict) else dict(described)
    description.setdefault("exclude_modules", described.get("ignore", []))
    scheme = described.get("kv_cache_scheme")
    if scheme:
        fp8 = isinstance(scheme, dict) and scheme.get("type") == "float"
        description.setdefault("kv_cache_quant_algo", FP8 if fp8 else str(scheme))
    return description
