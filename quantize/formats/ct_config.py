"""The `quantization_config` of compressed-tensors: groups of targets with arguments, read and written.

The arguments of weights and activations together say what ModelOpt and TensorRT-LLM call a quant_algo:

    weights                      activations               quant_algo
    int 4 / 8, group or channel  none                      W4A16_AWQ, W4A16, W8A16, W8A16_GPTQ
    int 8, channel or tensor     int 8 per tensor, static  W8A8_SQ_PER_CHANNEL
    int 8, channel or tensor     int 8 per token, dynamic  W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN
    float 8, tensor              float 8 per tensor        FP8
    float 8, channel or tensor   float 8 per token         FP8_PER_CHANNEL_PER_TOKEN
    float 4, tensor_group        float 4 local / none      NVFP4 / W4A16_NVFP4
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quantize.formats.base import (
    FP8,
    FP8_ROWWISE,
    INT8_DYNAMIC,
    INT8_SQ,
    NVFP4,
    NVFP4_WO,
    WEIGHT_ONLY,
    LinearScheme,
    Scheme,
)
from toolchain.errors import ModelError

TENSOR = "tensor"
"""The `variant` of a linear whose stored scale is one for the whole tensor though its algorithm has rows."""

_FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized")
_MIXED = "mixed-precision"
_VERSION = "0.19.0"  # of the writer that is followed here
_LINEAR = "Linear"


@dataclass(frozen=True)
class Group:
    """Linears that are quantized alike.

    Args:
        targets: names, regular expressions ("re:..."), or "Linear".
        scheme: how they are.
    """

    targets: tuple[str, ...]
    scheme: LinearScheme

    def matches(self, module: str) -> bool:
        """Whether `module` is one of them."""
        return any(_matches(module, target) for target in self.targets)


def read_groups(described: Mapping[str, Any], where: str) -> list[Group]:
    """The groups of a quantization_config.

    Raises ModelError, with the reason, for what a `QuantizedLinear` cannot hold or an engine here not mean.
    """
    if (described.get("sparsity_config") or {}).get("format", "dense") != "dense":
        raise _unreadable(where, "its weights are sparse (sparsity_config)")
    if described.get("transform_config"):
        raise _unreadable(where, "its activations are transformed (transform_config)")
    config_groups = described.get("config_groups")
    if not isinstance(config_groups, dict) or not config_groups:
        raise _unreadable(where, "its `config_groups` are missing or are not a JSON object")
    groups = []
    for name, group in config_groups.items():
        if not isinstance(group, dict) or not isinstance(group.get("weights"), dict):
            raise _unreadable(where, f"{name} of its `config_groups` does not say how weights are quantized")
        form = group.get("format") or described.get("format")
        if form not in _FORMATS:
            raise _unreadable(where, f"its weights are {form}; readable are {', '.join(_FORMATS)}")
        try:
            scheme = _scheme(group)
        except _UnknownError as unknown:
            raise _unreadable(where, f"{name}: {unknown}") from None
        targets = group.get("targets") or ()
        _check_patterns(targets, where)
        groups.append(Group(tuple(targets), scheme))
    return groups


def read_kv_cache(described: Mapping[str, Any], where: str) -> str | None:
    """The kv_cache_quant_algo that `kv_cache_scheme` amounts to."""
    scheme = described.get("kv_cache_scheme")
    if not scheme:
        return None
    kind = scheme.get("type"), scheme.get("num_bits"), scheme.get("strategy", "tensor"), scheme.get("dynamic")
    if kind == ("float", 8, "tensor", False):
        return FP8
    if kind == ("int", 8, "tensor", False) and scheme.get("symmetric", True):
        return "INT8"
    raise _unreadable(where, "its KV cache is quantized otherwise than with one static 8-bit scale a layer")


def describe(scheme: Scheme) -> dict[str, Any]:
    """The quantization_config of a checkpoint."""
    groups: dict[str, Any] = {}
    for number, linear in enumerate(scheme.distinct):
        modules = [name for name, own in scheme.linears.items() if own == linear]
        groups[f"group_{number}"] = {
            "targets": [_LINEAR] if len(scheme.distinct) == 1 else modules,
            "weights": _weights(linear),
            "input_activations": _activations(linear),
            "output_activations": None,
            "format": form_of(linear),
        }
    forms = {group["format"] for group in groups.values()}
    cache = None
    if scheme.kv_cache_quant_algo:
        kind = "float" if scheme.kv_cache_quant_algo == FP8 else "int"
        cache = _arguments(kind, 8, "tensor")
    return {
        "quant_method": "compressed-tensors",
        "version": _VERSION,
        "quantization_status": "compressed",
        "format": forms.pop() if len(forms) == 1 else _MIXED,
        "config_groups": groups,
        "ignore": list(scheme.exclude_modules),
        "kv_cache_scheme": cache,
    }


def form_of(linear: LinearScheme) -> str | None:
    """The name of the way in which a linear's tensors are stored; None where there is none."""
    if linear.quant_algo in WEIGHT_ONLY:
        return "pack-quantized"
    if linear.quant_algo in (INT8_SQ, INT8_DYNAMIC):
        return "int-quantized"
    if linear.quant_algo in (FP8, FP8_ROWWISE):
        return "float-quantized"
    return "nvfp4-pack-quantized" if linear.quant_algo in (NVFP4, NVFP4_WO) else None


class _UnknownError(Exception):
    """A reason why the arguments of a group amount to no algorithm."""


def _scheme(group: Mapping[str, Any]) -> LinearScheme:
    weights, inputs = group["weights"], group.get("input_activations")
    kind, bits = weights.get("type", "int"), weights.get("num_bits", 8)
    strategy = weights.get("strategy") or (
        "group" if weights.get("group_size") not in (None, -1) else "tensor"
    )
    if group.get("output_activations"):
        raise _UnknownError("the outputs of linears are quantized")
    if weights.get("dynamic"):
        raise _UnknownError("its weights are quantized while the model runs")
    if strategy not in ("tensor", "channel", "group", "tensor_group"):
        raise _UnknownError(f"a scale for each {strategy} of a weight has no place in a quantized linear")
    if kind == "int" and inputs is None and strategy != "tensor_group":
        return _weight_only(weights, bits, strategy)
    if not weights.get("symmetric", True):
        raise _UnknownError("weights with zero points multiply quantized activations")
    if (kind, bits, strategy) == ("float", 4, "tensor_group"):
        if weights.get("group_size") != 16:
            raise _UnknownError("NVFP4 has groups of 16")
        if inputs is None:
            return LinearScheme(NVFP4_WO, 16)
        if (inputs.get("type"), inputs.get("num_bits"), inputs.get("dynamic")) == ("float", 4, "local"):
            return LinearScheme(NVFP4, 16)
        raise _UnknownError("FP4 weights multiply activations of another kind")
    if bits != 8 or strategy not in ("tensor", "channel"):
        raise _UnknownError(
            f"{kind} weights of {bits} bits with a scale for each {strategy} have no algorithm here"
        )
    return _eight_bits(kind, strategy, inputs)


def _weight_only(weights: Mapping[str, Any], bits: Any, strategy: str) -> LinearScheme:
    if bits not in (4, 8):
        raise _UnknownError(f"its codes have {bits} bits; readable are 4 and 8")
    group = weights.get("group_size") if strategy == "group" else None
    if strategy == "group" and (type(group) is not int or group < 1):
        raise _UnknownError(f"its group_size is {group!r}")
    scattered = strategy == "group" and weights.get("actorder") in ("group", True)
    scheme = LinearScheme.weight_only(
        bits, group, zero_point=not weights.get("symmetric", True), act_order=scattered
    )
    return replace(scheme, variant=TENSOR if strategy == "tensor" else "")


def _eight_bits(kind: Any, strategy: str, inputs: Mapping[str, Any] | None) -> LinearScheme:
    """8-bit weights and activations."""
    if kind not in ("int", "float") or inputs is None or inputs.get("type", "int") != kind:
        raise _UnknownError(f"{kind} weights of 8 bits multiply activations of another kind")
    if inputs.get("num_bits", 8) != 8 or not inputs.get("symmetric", True):
        raise _UnknownError("its activations are not symmetric numbers of 8 bits")
    dynamic = bool(inputs.get("dynamic"))
    per = inputs.get("strategy") or "tensor"
    if (dynamic and per not in ("token", "tensor")) or (not dynamic and per != "tensor"):
        raise _UnknownError(f"its activations have a scale for each {per}")
    variant = TENSOR if strategy == "tensor" else ""
    if kind == "int":
        return LinearScheme(INT8_DYNAMIC if dynamic else INT8_SQ, bits=8, variant=variant)
    if dynamic:
        return LinearScheme(FP8_ROWWISE, bits=8, variant=variant)
    if strategy == "channel":
        raise _UnknownError("FP8 weights with a scale for each channel have static activations")
    return LinearScheme(FP8, bits=8)


def _arguments(kind: str, bits: int, strategy: str, **others: Any) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": True,
        "strategy": strategy,
        "group_size": None,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
    } | others


def _weights(linear: LinearScheme) -> dict[str, Any]:
    if linear.quant_algo in WEIGHT_ONLY:
        strategy = "channel" if linear.group_size is None else "group"
        own = {"group_size": linear.group_size, "symmetric": not linear.zero_point}
        return _arguments("int", linear.bits, strategy, **own)
    if linear.quant_algo in (NVFP4, NVFP4_WO):
        return _arguments("float", 4, "tensor_group", group_size=16, scale_dtype="torch.float8_e4m3fn")
    kind = "int" if linear.quant_algo in (INT8_SQ, INT8_DYNAMIC) else "float"
    return _arguments(kind, 8, "tensor" if linear.quant_algo == FP8 else "channel")


def _activations(linear: LinearScheme) -> dict[str, Any] | None:
    if linear.quant_algo in (FP8, INT8_SQ):
        return _arguments("float" if linear.quant_algo == FP8 else "int", 8, "tensor")
    if linear.quant_algo in (FP8_ROWWISE, INT8_DYNAMIC):
        kind = "float" if linear.quant_algo == FP8_ROWWISE else "int"
        return _arguments(kind, 8, "token", dynamic=True)
    if linear.quant_algo == NVFP4:
        own = {"group_size": 16, "dynamic": "local", "scale_dtype": "torch.float8_e4m3fn"}
        return _arguments("float", 4, "tensor_group", **own)
    return None


def _matches(module: str, target: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target in (_LINEAR, module)


def _check_patterns(targets: Any, where: str) -> None:
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise _unreadable(where, "the targets of a group are not a list of names")
    for target in targets:
        try:
            re.compile(target.removeprefix("re:"))
        except re.error as error:
            if target.startswith("re:"):
                raise _unreadable(where, f"its target {target!r} is not a pattern: {error}") from None


def _unreadable(where: str, why: str) -> ModelError:
    return ModelError(
        "the compressed-tensors checkpoint cannot be read",
        where=where,
        why=why,
        fix="start from the unquantized model",
    )
