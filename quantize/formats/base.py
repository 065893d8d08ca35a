"""What a file form of quantized checkpoints is: the `Scheme` that it describes, and the `Format` Protocol.

A form decides how a `QuantizedLinear` becomes tensors with names and how `config.json` tells of it. It knows
neither algorithms nor engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError
from toolchain.model.checkpoint import Checkpoint

W4A16_AWQ = "W4A16_AWQ"
W4A16 = "W4A16"
W4A8_AWQ = "W4A8_AWQ"
FP8 = "FP8"
FP8_ROWWISE = "FP8_PER_CHANNEL_PER_TOKEN"
INT8_SQ = "W8A8_SQ_PER_CHANNEL"
INT8_DYNAMIC = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
INT8_WO = "W8A16"
INT8_GROUPS = "W8A16_GPTQ"
NVFP4 = "NVFP4"
NVFP4_WO = "W4A16_NVFP4"
MIXED = "MIXED_PRECISION"

WEIGHT_ONLY = (W4A16_AWQ, W4A16, INT8_WO, INT8_GROUPS)
"""Integer weights, 16-bit activations: what GPTQ's and AutoAWQ's forms are made for."""


@dataclass(frozen=True)
class LinearScheme:
    """How one linear is quantized, in ModelOpt's and TensorRT-LLM's words.

    Args:
        quant_algo: "W4A16_AWQ", "FP8", ...: what the weights and activations are. Every 4-bit weight in
            groups with 16-bit activations is a "W4A16_AWQ", whichever algorithm rounded it.
        group_size: input channels that share a scale; None where the algorithm has no groups.
        zero_point: whether codes are unsigned with zero points (asymmetric).
        bits: width of a weight's code.
        act_order: whether the groups are of scattered channels, told by a g_idx.
        variant: which of several ways its form stored it in, for the form's reader alone; "" is the one in
            which the form writes.
    """

    quant_algo: str
    group_size: int | None = None
    zero_point: bool = False
    bits: int = 4
    act_order: bool = False
    variant: str = field(default="", compare=False)

    @classmethod
    def weight_only(
        cls, bits: int, group_size: int | None, *, zero_point: bool = False, act_order: bool = False
    ) -> LinearScheme:
        """Integer weights of 4 or 8 bits, in groups or (None) with a scale per output channel."""
        if bits == 4:
            algo = W4A16 if group_size is None else W4A16_AWQ
        else:
            algo = INT8_WO if group_size is None and not zero_point else INT8_GROUPS
        return cls(algo, group_size, zero_point, bits, act_order)


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint is quantized.

    Args:
        linears: full module name -> how it is quantized, for each quantized linear.
        exclude_modules: full names or patterns of modules that stay as they were, as the form lists them.
        kv_cache_quant_algo: "FP8" or "INT8"; None where the cache is not quantized.
    """

    linears: Mapping[str, LinearScheme]
    exclude_modules: tuple[str, ...] = ()
    kv_cache_quant_algo: str | None = None

    @property
    def distinct(self) -> tuple[LinearScheme, ...]:
        """Every scheme that occurs, each once, in order of appearance."""
        return tuple(dict.fromkeys(self.linears.values()))

    @property
    def quant_algo(self) -> str | None:
        """The algorithm of all linears, "MIXED_PRECISION" where they differ, None where there is none."""
        if not self.distinct:
            return None
        return self.distinct[0].quant_algo if len(self.distinct) == 1 else MIXED

    @property
    def group_size(self) -> int | None:
        """The group size of all linears; None where they have none or differ."""
        return self.distinct[0].group_size if len(self.distinct) == 1 else None


@dataclass(frozen=True)
class Description:
    """What a form says of a checkpoint besides its tensors.

    Args:
        quantization_config: goes into `config.json` under that name.
        files: other JSON files, by name.
    """

    quantization_config: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


FLOATS = ("F32", "F16", "BF16")
"""The dtypes of scales and biases, as safetensors names them."""


@dataclass(frozen=True)
class Part:
    """A tensor of a linear: its shape, and the dtypes (safetensors' names) that it may have."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...] = FLOATS


@dataclass(frozen=True)
class Layout:
    """What a form stores of one linear, by name within the module.

    Args:
        required: what must be there.
        optional: what may be.
    """

    required: Mapping[str, Part]
    optional: Mapping[str, Part] = field(default_factory=dict)

    def check(self, checkpoint: Checkpoint, module: str) -> None:
        """Raise one ModelError that names every tensor of `module` that is missing or not as it should be."""
        problems = []
        for name, part in {**self.required, **self.optional}.items():
            full = f"{module}.{name}"
            if full not in checkpoint:
                problems += [f"{name} is missing"] if name in self.required else []
            elif checkpoint.shape(full) != part.shape:
                problems.append(
                    f"{name} is {list(checkpoint.shape(full))} where {list(part.shape)} would fit the others"
                )
            elif checkpoint.dtype(full) not in part.dtypes:
                problems.append(f"{name} is {checkpoint.dtype(full)}, not {' or '.join(part.dtypes)}")
        if problems:
            raise ModelError(
                "the linear's tensors contradict each other, or what the configuration says of them",
                where=f"{checkpoint.model_dir}: {module}",
                why="; ".join(problems),
                fix="download the checkpoint again, or quantize the model again",
            )


def group_count(columns: int, group_size: int | None, where: str) -> int:
    """How many groups `columns` input channels make. Raises ModelError where they do not divide."""
    if group_size is None:
        return 1
    if group_size < 1 or columns % group_size:
        raise ModelError(
            f"groups of {group_size} do not divide {columns} input channels",
            where=where,
            fix="start from the unquantized model",
        )
    return columns // group_size


class Format(Protocol):
    """A file form: writes linears and reads them back to the bit."""

    name: str
    holds_pre_quant_scale: bool

    def layout(self, scheme: LinearScheme, rows: int, columns: int) -> Layout:
        """The tensors of a linear whose weight is [rows, columns].

        Raises ModelError where the groups do not divide the columns.
        """

    def recognises(self, directory: Path, config: Mapping[str, Any]) -> bool:
        """Whether the checkpoint with this `config.json` is of this form."""

    def scheme(self, directory: Path, config: Mapping[str, Any], checkpoint: Checkpoint) -> Scheme:
        """What the checkpoint says of itself. Raises ModelError where it cannot be read, with the reason."""

    def read_linear(self, checkpoint: Checkpoint, module: str, scheme: LinearScheme) -> QuantizedLinear:
        """The linear `module`. Raises ModelError where its tensors contradict each other."""

    def kv_scales(self, checkpoint: Checkpoint, layer_prefix: str) -> tuple[Tensor, Tensor] | None:
        """The float32 scalar scales of the keys and the values of a layer; None where there are none."""

    def problems(self, scheme: Scheme) -> list[str]:
        """Why this form cannot hold such a checkpoint; empty when it can."""

    def linear_tensors(
        self, module: str, linear: QuantizedLinear, scheme: LinearScheme, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """The stored tensors of a linear, by full name.

        `dtype` is that of the model's plain weights, in which some forms store scales. Raises QuantizeError
        where the form cannot hold the linear's values.
        """

    def kv_tensors(self, layer_prefix: str, k_scale: Tensor, v_scale: Tensor) -> dict[str, Tensor]:
        """The stored scales of a layer's KV cache, by full name."""

    def describe(self, scheme: Scheme) -> Description:
        """What to write beside the tensors."""
