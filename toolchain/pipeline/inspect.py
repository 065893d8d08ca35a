"""What an artifact or a checkpoint holds, as plain values to print."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import ModelError, UsageError
from toolchain.model.checkpoint import DESCRIPTION_FILES, Checkpoint
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
    quantization: dict[str, Any]  # see `describe_quantization`
    rows: list[TensorRow]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(row.nbytes for row in self.rows)


def inspect_checkpoint(directory: Path) -> CheckpointFacts:
    """The tensors of a model directory, layers folded together."""
    config = read_json_object(directory / "config.json")
    checkpoint = Checkpoint.open(directory)
    kinds: dict[tuple[str, str, tuple[int, ...]], list[int]] = defaultdict(list)
    for name in checkpoint.names:
        folded = _LAYER.sub(layer_prefix(0).replace("0", "*"), linear_kind(name))
        kinds[folded, checkpoint.dtype(name), checkpoint.shape(name)].append(checkpoint.location(name).nbytes)
    return CheckpointFacts(
        directory,
        str((config.get("architectures") or ["unknown"])[0]),
        describe_quantization(directory, config),
        [
            TensorRow(name, len(sizes), dtype, shape, sum(sizes))
            for (name, dtype, shape), sizes in kinds.items()
        ],
    )


def describe_quantization(directory: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """How a checkpoint is quantized; nothing for a plain one.

    Returns:
        format, quant_algo, group_size (None where linears differ or have none), kv_cache_quant_algo, and
        `schemes`: for each way in which linears are quantized, quant_algo, bits, group_size, zero_point,
        act_order and the number of `linears`. Of a form that cannot be read, quant_method and, as
        `unreadable`, the reason.
    """
    if "quantization_config" not in config and not any(
        (directory / name).is_file() for name in DESCRIPTION_FILES
    ):
        return {}
    from quantize.formats.checkpoint import QuantizedCheckpoint

    try:
        opened = QuantizedCheckpoint.open(directory)
    except ModelError as error:
        described = config.get("quantization_config")
        method = described.get("quant_method") if isinstance(described, dict) else described
        return {
            "quant_method": method,
            "unreadable": f"{error.what}: {error.why}" if error.why else error.what,
        }
    if opened.form is None:
        return {}
    counts = Counter(opened.scheme.linears.values())
    return {
        "format": opened.form.name,
        "quant_algo": opened.quant_algo,
        "group_size": opened.group_size,
        "kv_cache_quant_algo": opened.kv_cache_quant_algo,
        "schemes": [
            {name: value for name, value in asdict(scheme).items() if name != "variant"} | {"linears": count}
            for scheme, count in counts.items()
        ],
    }


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
