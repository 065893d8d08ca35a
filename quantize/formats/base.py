"""What a file form of quantized checkpoints is: the `Scheme` that it describes, and the `Format` Protocol.

A form decides how a `QuantizedLinear` becomes tensors with names and how `config.json` tells of it. It knows
neither algorithms nor engines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from quantize.linear import QuantizedLinear
from toolchain.model.checkpoint import Checkpoint

W4A16_AWQ = "W4A16_AWQ"
W4A8_AWQ = "W4A8_AWQ"
FP8 = "FP8"
FP8_ROWWISE = "FP8_PER_CHANNEL_PER_TOKEN"
INT8_SQ = "W8A8_SQ_PER_CHANNEL"
INT8_WO = "W8A16"
NVFP4 = "NVFP4"
MIXED = "MIXED_PRECISION"


@dataclass(frozen=True)
class LinearScheme:
    """How one linear is quantized, in ModelOpt's and TensorRT-LLM's words.

    Args:
        quant_algo: "W4A16_AWQ", "FP8", ...: what the weights and activations are.
        group_size: input channels that share a scale; None where the algorithm has no groups.
        zero_point: whether codes are unsigned with zero points (asymmetric).
        bits: width of a weight's code.
        act_order: whether the groups are of scattered channels, told by a g_idx.
    """

    quant_algo: str
    group_size: int | None = None
    zero_point: bool = False
    bits: int = 4
    act_order: bool = False


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


class Format(Protocol):
    """A file form: writes linears and reads them back to the bit."""

    name: str

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

    def linear_tensors(self, module: str, linear: QuantizedLinear, scheme: LinearScheme) -> dict[str, Tensor]:
        """The stored tensors of a linear, by full name."""

    def kv_tensors(self, layer_prefix: str, k_scale: Tensor, v_scale: Tensor) -> dict[str, Tensor]:
        """The stored scales of a layer's KV cache, by full name."""

    def describe(self, scheme: Scheme) -> Description:
        """What to write beside the tensors."""
