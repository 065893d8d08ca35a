"""What an artifact or a checkpoint holds, as plain values to print."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import UsageError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.config_json import read_json_object
from toolchain.model.families import layer_prefix, linear_kind
from toolchain.pipeline.artifact import Artifact

_LAYER = re.compile(re.escape(layer_prefix(0)).replace("0", r"\d+"))


@dataclass(frozen=True)
class TensorRow:
    """Tensors of one kind: the same name in every layer and expert, one dtype, one shape."""

    name: str  # with * for the numbers of layer and expert
    count: int
    dtype: str
    shape: tuple[int, ...]
    nbytes: int  # of all of them


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint directory at a glance."""

    path: Path
    architecture: str
    quantization: dict[str, Any]  # quant_algo, group_size ... of hf_quant_config.json; empty if plain
    rows: list[TensorRow]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(row.nbytes for row in self.rows)


def inspect_checkpoint(directory: Path) -> CheckpointFacts:
    """The tensors of a model directory, layers folded together."""
    config = read_json_object(directory / "config.json")
    quantized = directory / "hf_quant_config.json"
    checkpoint = Checkpoint.open(directory)
    kinds: dict[tuple[str, str, tuple[int, ...]], list[int]] = defaultdict(list)
    for name in checkpoint.names:
        folded = _LAYER.sub(layer_prefix(0).replace("0", "*"), linear_kind(name))
        kinds[folded, checkpoint.dtype(name), checkpoint.shape(name)].append(checkpoint.location(name).nbytes)
    return CheckpointFacts(
        directory,
        str((config.get("architectures") or ["unknown"])[0]),
        read_json_object(quantized).get("quantization", {}) if quantized.is_file() else {},
        [
            TensorRow(name, len(sizes), dtype, shape, sum(sizes))
            for (name, dtype, shape), sizes in kinds.items()
        ],
    )


def inspect_path(path: Path) -> Artifact | CheckpointFacts:
    """Whatever `path` is: a published artifact, or a directory with a model."""
    if (path / "manifest.json").is_file():
        return Artifact.open(path)
    if (path / "config.json").is_file():
        return inspect_checkpoint(path)
    raise UsageError(
        f"{path} is neither an artifact nor a checkpoint" if path.exists() else f"{path} does not exist",
        why="there is no manifest.json and no config.json in it" if path.exists() else None,
        fix="name artifacts/NAME, or a directory in Hugging Face layout",
    )
