"""GPTQ's form: what AutoGPTQ and GPTQModel write, and vLLM, SGLang and transformers read.

    qweight  int32 [in * bits / 32, out]    codes from 0 up, packed along the input
    qzeros   int32 [groups, out * bits / 32]    zero points, packed along the output
    scales   f16 or bf16 [groups, out]
    g_idx    int32 [in]                     the group of each input channel

`config.json` describes it as `quantization_config`; older checkpoints have `quantize_config.json` alone. In
the checkpoint_format "gptq" (v1) the stored zero points are one less than they are, in "gptq_v2" they are as
they are. GPTQModel takes the one off whole words of zero points, so that a zero borrows from its neighbour;
other writers do something else. Here v1 is written only where all zero points lie in the middle of the range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantize.formats.base import WEIGHT_ONLY, Description, Layout, LinearScheme, Part, Scheme, group_count
from quantize.formats.packing import pack_words, unpack_words, word_count
from quantize.formats.unsigned import from_unsigned, group_index, half_scales, middle, unsigned
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.config_json import read_json_object

CONFIG_FILE = "quantize_config.json"

_V1, _V2 = "gptq", "gptq_v2"
_V1_WORDS = "gptq by words"
_INT32 = ("I32",)


class Gptq:
    """The `Format` of AutoGPTQ and GPTQModel."""

    name = "gptq"
    holds_pre_quant_scale = False

    def recognises(self, directory: Path, config: Mapping[str, Any]) -> bool:
        """By quant_method, or by `quantize_config.json` where `config.json` says nothing."""
        described = config.get("quantization_config")
        if isinstance(described, dict):
            return described.get("quant_method") == "gptq"
        return not described and (directory / CONFIG_FILE).is_file()

    def scheme(self, directory: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> Scheme:
        """From the configuration, its overrides by module, and the `g_idx` of every linear."""
        described = config.get("quantization_config") or read_json_object(directory / CONFIG_FILE)
        where = str(directory / ("config.json" if "quantization_config" in config else CONFIG_FILE))
        _check_readable(described, where)
        own = {
            name.removesuffix(".qweight"): _described_linear(described, name.removesuffix(".qweight"), where)
            for name in checkpoint.names
            if name.endswith(".qweight")
        }
        # `sym` and `desc_act` tell how it was made; the zero points and g_idx, whether that left traces.
        zero_point = any(
            linear.zero_point and not _in_the_middle(checkpoint, module, linear)
            for module, linear in own.items()
        )
        act_order = any(_read_index(checkpoint, module, linear) is not None for module, linear in own.items())
        linears = {
            module: replace(
                linear,
                zero_point=zero_point and linear.zero_point,
                act_order=act_order and linear.group_size is not None,
            )
            for module, linear in own.items()
        }
        skipped = [key.removeprefix("-:") for key in _dynamic(described, where) if key.startswith("-:")]
        return Scheme(linears, tuple(skipped))

    def layout(self, scheme: LinearScheme, rows: int, columns: int) -> Layout:
        """See the table above."""
        groups = group_count(columns, scheme.group_size, "a linear in GPTQ's form")
        return Layout(
            {
                "qweight": Part((word_count(columns, scheme.bits), rows), _INT32),
                "qzeros": Part((groups, word_count(rows, scheme.bits)), _INT32),
                "scales": Part((groups, rows)),
            },
            {"g_idx": Part((columns,), _INT32), "bias": Part((rows,))},
        )

    def read_linear(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        """The linear `module`, bias included."""
        columns, rows = _weight_shape(checkpoint, module, scheme.bits)
        self.layout(scheme, rows, columns).check(checkpoint, module)
        bias = f"{module}.bias"
        return from_unsigned(
            unpack_words(checkpoint.read(f"{module}.qweight").T, scheme.bits),
            _read_zeros(checkpoint, module, scheme)[:, :rows].T,
            checkpoint.read(f"{module}.scales").T,
            scheme.bits,
            symmetric=not scheme.zero_point,
            where=f"{checkpoint.model_dir}: {module}",
            group_index=_read_index(checkpoint, module, scheme),
            bias=checkpoint.read(bias) if bias in checkpoint else None,
        )

    def kv_scales(self, checkpoint: Checkpoint, layer_prefix: str) -> tuple[Tensor, Tensor] | None:
        """None: the form has no scales of a KV cache."""
        return None

    def problems(self, scheme: Scheme) -> list[str]:
        """Anything but one kind of integer weights."""
        found = [
            f"GPTQ's form holds 4- and 8-bit integer weights only, not {linear.quant_algo}"
            for linear in scheme.distinct
            if linear.quant_algo not in WEIGHT_ONLY
        ]
        if not found and len(scheme.distinct) > 1:
            found.append("GPTQ's form has one width and one group size for all linears")
        if scheme.kv_cache_quant_algo:
            found.append("GPTQ's form has no scales of a KV cache")
        return list(dict.fromkeys(found))

    def linear_tensors(
        self, module: str, linear: QuantizedLinear, scheme: LinearScheme, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """See the table above."""
        per_word = 32 // linear.bits
        if linear.out_features % per_word or linear.in_features % per_word:
            raise QuantizeError(
                f"GPTQ's form packs {per_word} channels in a word, which do not divide "
                f"{linear.out_features} x {linear.in_features}",
                where=module,
                fix="exclude the linear, or use the form modelopt or compressed-tensors",
            )
        codes_OI, zeros_OG = unsigned(linear, module)
        if not scheme.zero_point:
            zeros_OG = zeros_OG - 1  # v1
        tensors = {
            "qweight": pack_words(codes_OI, linear.bits).T.contiguous(),
            "qzeros": pack_words(zeros_OG.T.contiguous(), linear.bits),
            "scales": half_scales(linear, module, dtype, self.name).T.contiguous(),
            "g_idx": group_index(linear),
        }
        if linear.bias is not None:
            tensors["bias"] = linear.bias
        return {f"{module}.{name}": tensor for name, tensor in tensors.items()}

    def kv_tensors(self, layer_prefix: str, k_scale: Tensor, v_scale: Tensor) -> dict[str, Tensor]:
        """Never called: `problems` refuses a quantized KV cache."""
        raise NotImplementedError

    def describe(self, scheme: Scheme) -> Description:
        """As GPTQModel describes it, in `config.json` and in a file of its own."""
        linear = scheme.distinct[0]
        config = {
            "bits": linear.bits,
            "group_size": -1 if linear.group_size is None else linear.group_size,
            "desc_act": linear.act_order,
            "sym": not linear.zero_point,
            "lm_head": False,
            "quant_method": "gptq",
            "checkpoint_format": _V2 if linear.zero_point else _V1,
            "pack_dtype": "int32",
            "meta": {"quantizer": ["llmbuild"]},
        }
        plain = [name for name in scheme.exclude_modules if name.startswith("model.layers.")]
        if plain:
            config["dynamic"] = {f"-:^{re.escape(name)}$": {} for name in plain}
        return Description(config, {CONFIG_FILE: config})


def _check_readable(described: Mapping[str, Any], where: str) -> None:
    """Refuse what the tensors of this form cannot be understood without."""
    problem = None
    if _zero_form(described) not in (_V1, _V2):
        problem = f"its tensors are laid out as {_zero_form(described)}; readable are {_V1} and {_V2}"
    elif described.get("pack_dtype", "int32") not in ("int32", "torch.int32"):
        problem = f"its codes are packed in {described['pack_dtype']}, not in int32"
    elif described.get("adapter"):
        problem = "it has an adapter beside the quantized weights"
    if problem is not None:
        raise ModelError(
            "the GPTQ checkpoint cannot be read",
            where=where,
            why=problem,
            fix="use a checkpoint in the format gptq or gptq_v2, or start from the unquantized model",
        )


def _zero_form(described: Mapping[str, Any]) -> str:
    """The checkpoint_format, which AutoGPTQ did not write."""
    if described.get("is_marlin_format"):
        return "marlin"
    return str(described.get("checkpoint_format") or described.get("format") or _V1)


def _dynamic(described: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The overrides by module: regular expression -> settings; a "-:" before it leaves the module plain."""
    dynamic = described.get("dynamic") or {}
    if not isinstance(dynamic, dict):
        raise ModelError("`dynamic` is not a JSON object", where=where, fix="download the checkpoint again")
    return dynamic


def _override(dynamic: Mapping[str, Any], module: str, where: str) -> Mapping[str, Any]:
    """What the first pattern of `dynamic` that matches says of a module."""
    for pattern, own in dynamic.items():
        try:
            matches = re.match(pattern.removeprefix("+:").removeprefix("-:"), module)
        except re.error as error:
            raise ModelError(
                f"{pattern!r} in `dynamic` is not a regular expression: {error}", where=where
            ) from None
        if matches:
            return own if isinstance(own, dict) else {}
    return {}


def _described_linear(described: Mapping[str, Any], module: str, where: str) -> LinearScheme:
    """What the configuration says of a linear."""
    own = {**described, **_override(_dynamic(described, where), module, where)}
    bits, group = own.get("bits"), own.get("group_size", -1)
    if bits not in (4, 8):
        raise ModelError(
            f"the checkpoint has codes of {bits} bits",
            where=f"{where}: {module}",
            why="readable are 4 and 8 bits",
            fix="start from the unquantized model",
        )
    if type(group) is not int or (group < 1 and group != -1):
        raise ModelError(f"group_size must be a positive number or -1, not {group!r}", where=where)
    variant = _V2
    if _zero_form(described) == _V1:
        meta = described.get("meta")
        writer = meta.get("quantizer") if isinstance(meta, dict) else None
        writer = writer[0] if isinstance(writer, list) and writer else writer
        variant = _V1_WORDS if str(writer).startswith("gptqmodel") else _V1
    scheme = LinearScheme.weight_only(
        bits, None if group == -1 else group, zero_point=not own.get("sym", True)
    )
    return replace(scheme, variant=variant)


def _weight_shape(checkpoint: Checkpoint, module: str, bits: int) -> tuple[int, int]:
    """Input and output channels of the weight, by the shape of its qweight."""
    shape = checkpoint.shape(f"{module}.qweight")
    if len(shape) != 2:
        raise ModelError(
            f"qweight is {list(shape)}, not a matrix",
            where=f"{checkpoint.model_dir}: {module}",
            fix="download the checkpoint again",
        )
    return shape[0] * 32 // bits, shape[1]


def _read_zeros(checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> Tensor:
    """The zero points, uint8 [groups, out]; padding included."""
    where, bits = f"{checkpoint.model_dir}: {module}", scheme.bits
    words = checkpoint.read(f"{module}.qzeros")
    if words.dtype != torch.int32 or words.dim() != 2:
        raise ModelError(
            f"qzeros is {words.dtype} {list(words.shape)}, not an int32 matrix",
            where=where,
            fix="download the checkpoint again",
        )
    variant = scheme.variant or (_V2 if scheme.zero_point else _V1)
    if variant == _V2:
        return unpack_words(words, bits)
    if variant == _V1_WORDS:
        one_each = sum(1 << shift for shift in range(0, 32, bits))
        return unpack_words(words + one_each, bits)  # wraps, as the subtraction did
    stored = unpack_words(words, bits)
    if bool((stored == 2**bits - 1).any()):
        raise ModelError(
            "a zero point cannot be told",
            where=where,
            why=f"it is stored as {2**bits - 1}, which some writers of the format gptq mean as 0, others as "
            f"{2**bits}, and some let borrow from its neighbours",
            fix="start from the unquantized model, or from a checkpoint in the format gptq_v2",
        )
    return stored + 1


def _in_the_middle(checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> bool:
    """Whether all zero points are those of symmetric codes."""
    _, rows = _weight_shape(checkpoint, module, scheme.bits)
    return bool((_read_zeros(checkpoint, module, scheme)[:, :rows] == middle(scheme.bits)).all())


def _read_index(checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> Tensor | None:
    """The group of each input channel, int64 [in]; None where groups are consecutive channels."""
    name, where = f"{module}.g_idx", f"{checkpoint.model_dir}: {module}"
    columns, _ = _weight_shape(checkpoint, module, scheme.bits)
    groups = group_count(columns, scheme.group_size, where)
    if name not in checkpoint or scheme.group_size is None:
        return None
    index_I = checkpoint.read(name).long()
    if torch.equal(index_I, torch.arange(columns) // scheme.group_size):
        return None
    if index_I.shape != (columns,) or bool(((index_I < 0) | (index_I >= groups)).any()):
        raise ModelError(
            f"g_idx must give a group below {groups} to each of {columns} input channels",
            where=where,
            fix="download the checkpoint again",
        )
    return index_I
