"""AutoAWQ's form, version "gemm": what AutoAWQ writes, and vLLM, SGLang, TGI and transformers read.

    qweight  int32 [in, out / 8]        codes from 0 up, packed along the output
    qzeros   int32 [groups, out / 8]    zero points, packed the same way
    scales   f16 or bf16 [groups, out]

The nibbles of a word, from the lowest on, hold output channels 0, 2, 4, 6, 1, 3, 5, 7 of its eight. AWQ's
scales of the inputs are in the norms, in v_proj and in up_proj; beside a linear there is no place for one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from quantize.formats.base import WEIGHT_ONLY, Description, Layout, LinearScheme, Part, Scheme, group_count
from quantize.formats.packing import pack_words, unpack_words
from quantize.formats.unsigned import from_unsigned, half_scales, middle, unsigned
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError, QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.config_json import read_json_object

CONFIG_FILE = "quant_config.json"

_BITS, _PER_WORD = 4, 8
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The output channel, of eight, in each nibble of a word, the lowest nibble first."""
_INT32 = ("I32",)


class AutoAwq:
    """The `Format` of AutoAWQ."""

    name = "awq"
    holds_pre_quant_scale = False

    def recognises(self, directory: Path, config: Mapping[str, Any]) -> bool:
        """By quant_method, or by the `quant_config.json` of old versions where `config.json` says nothing."""
        described = config.get("quantization_config")
        if isinstance(described, dict):
            return described.get("quant_method") == "awq"
        return not described and (directory / CONFIG_FILE).is_file()

    def scheme(self, directory: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> Scheme:
        """From the configuration, and the zero points of the linears."""
        described = config.get("quantization_config") or read_json_object(directory / CONFIG_FILE)
        where = str(directory / ("config.json" if "quantization_config" in config else CONFIG_FILE))
        version, bits = (
            str(described.get("version", "gemm")).lower(),
            described.get("bits", described.get("w_bit")),
        )
        if version != "gemm" or bits != _BITS:
            raise ModelError(
                f"the AWQ checkpoint has {bits} bits in the layout {version}, which cannot be read",
                where=where,
                why="readable are 4 bits in the layout gemm; the others are orders for one kernel",
                fix="use a checkpoint in the layout gemm, or start from the unquantized model",
            )
        group = described.get("group_size", described.get("q_group_size", -1))
        if type(group) is not int or (group < 1 and group != -1):
            raise ModelError(f"group_size must be a positive number or -1, not {group!r}", where=where)
        scheme = LinearScheme.weight_only(_BITS, None if group == -1 else group)
        modules = [name.removesuffix(".qweight") for name in checkpoint.names if name.endswith(".qweight")]
        if not all(_in_the_middle(checkpoint, module) for module in modules):
            scheme = replace(scheme, zero_point=True)
        excluded = described.get("modules_to_not_convert") or ()
        return Scheme(dict.fromkeys(modules, scheme), tuple(map(str, excluded)))

    def layout(self, scheme: LinearScheme, rows: int, columns: int) -> Layout:
        """See the table above."""
        groups = group_count(columns, scheme.group_size, "a linear in AutoAWQ's form")
        return Layout(
            {
                "qweight": Part((columns, rows // _PER_WORD), _INT32),
                "qzeros": Part((groups, rows // _PER_WORD), _INT32),
                "scales": Part((groups, rows)),
            },
            {"bias": Part((rows,))},
        )

    def read_linear(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        """The linear `module`, bias included."""
        qweight = checkpoint.read(f"{module}.qweight")
        columns, words = qweight.shape if qweight.dim() == 2 else (0, 0)
        self.layout(scheme, words * _PER_WORD, columns).check(checkpoint, module)
        bias = f"{module}.bias"
        return from_unsigned(
            _unpack(qweight).T,
            _unpack(checkpoint.read(f"{module}.qzeros")).T,
            checkpoint.read(f"{module}.scales").T,
            _BITS,
            symmetric=not scheme.zero_point,
            where=f"{checkpoint.model_dir}: {module}",
            bias=checkpoint.read(bias) if bias in checkpoint else None,
        )

    def kv_scales(self, checkpoint: Checkpoint, layer_prefix: str) -> tuple[Tensor, Tensor] | None:
        """None: the form has no scales of a KV cache."""
        return None

    def problems(self, scheme: Scheme) -> list[str]:
        """Anything but one kind of 4-bit weights, with groups of consecutive channels."""
        found = []
        for linear in scheme.distinct:
            if linear.quant_algo not in WEIGHT_ONLY or linear.bits != _BITS:
                found.append(f"AutoAWQ's form holds 4-bit integer weights only, not {linear.quant_algo}")
            if linear.act_order:
                found.append("AutoAWQ's form has no g_idx: groups are consecutive channels")
        if not found and len({linear.group_size for linear in scheme.distinct}) > 1:
            found.append("AutoAWQ's form has one group size for all linears")
        if scheme.kv_cache_quant_algo:
            found.append("AutoAWQ's form has no scales of a KV cache")
        return list(dict.fromkeys(found))

    def linear_tensors(
        self, module: str, linear: QuantizedLinear, scheme: LinearScheme, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """See the table above. A symmetric linear gets zero points in the middle of the range."""
        if linear.out_features % _PER_WORD:
            raise QuantizeError(
                f"AutoAWQ's form packs {_PER_WORD} output channels in a word, which do not divide "
                f"{linear.out_features}",
                where=module,
                fix="exclude the linear, or use the form modelopt or compressed-tensors",
            )
        codes_OI, zeros_OG = unsigned(linear, module)
        tensors = {
            "qweight": _pack(codes_OI.T),
            "qzeros": _pack(zeros_OG.T),
            "scales": half_scales(linear, module, dtype, self.name).T.contiguous(),
        }
        if linear.bias is not None:
            tensors["bias"] = linear.bias
        return {f"{module}.{name}": tensor for name, tensor in tensors.items()}

    def kv_tensors(self, layer_prefix: str, k_scale: Tensor, v_scale: Tensor) -> dict[str, Tensor]:
        """Never called: `problems` refuses a quantized KV cache."""
        raise NotImplementedError

    def describe(self, scheme: Scheme) -> Description:
        """As AutoAWQ describes it in `config.json`."""
        group = scheme.distinct[0].group_size
        plain = [name for name in scheme.exclude_modules if name.startswith("model.layers.")]
        return Description(
            {
                "quant_method": "awq",
                "version": "gemm",
                "bits": _BITS,
                "group_size": -1 if group is None else group,
                "zero_point": True,
                "modules_to_not_convert": plain or None,
            }
        )


def _pack(codes_RO: Tensor) -> Tensor:
    """uint8 [rows, out] to int32 [rows, out / 8]."""
    eights_RW8 = codes_RO.reshape(codes_RO.shape[0], -1, _PER_WORD)
    return pack_words(eights_RW8[:, :, list(_ORDER)].flatten(1), _BITS)


def _unpack(words_RW: Tensor) -> Tensor:
    """The inverse of `_pack`."""
    nibbles_RW8 = unpack_words(words_RW, _BITS).view(*words_RW.shape, _PER_WORD)
    return nibbles_RW8[:, :, [_ORDER.index(channel) for channel in range(_PER_WORD)]].flatten(1)


def _in_the_middle(checkpoint: Checkpoint, module: str) -> bool:
    """Whether all zero points are those of symmetric codes."""
    words = checkpoint.read(f"{module}.qzeros")
    if words.dtype != torch.int32 or words.dim() != 2:
        raise ModelError(
            f"qzeros is {words.dtype} {list(words.shape)}, not an int32 matrix",
            where=f"{checkpoint.model_dir}: {module}",
            fix="download the checkpoint again",
        )
    return bool((unpack_words(words, _BITS) == middle(_BITS)).all())
