"""What a directory is and holds, as plain values to print."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolchain.engine.tensorrt.stamp import is_engine_dir
from toolchain.errors import ModelError, UsageError
from toolchain.findings import ERROR, WARNING, Finding
from toolchain.model.checkpoint import DESCRIPTION_FILES, Checkpoint
from toolchain.model.config_json import read_json_object
from toolchain.model.families import layer_prefix, linear_kind
from toolchain.model.spec import load_spec
from toolchain.pipeline.artifact import Artifact
from toolchain.pipeline.describe_repository import describe_repository, is_repository
from toolchain.pipeline.describe_tensorrt import (
    describe_engines,
    describe_ranks,
    is_rank_checkpoint,
)
from toolchain.pipeline.described import Described
from toolchain.plan.runs import Runner, runners

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
    findings: list[Finding] = field(default_factory=list)
    runners: list[Runner] = field(default_factory=list)

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
    quantization = describe_quantization(directory, config)
    return CheckpointFacts(
        directory,
        str((config.get("architectures") or ["unknown"])[0]),
        quantization,
        [
            TensorRow(name, len(sizes), dtype, shape, sum(sizes))
            for (name, dtype, shape), sizes in kinds.items()
        ],
        _findings(directory),
        _runners(quantization),
    )


def _findings(directory: Path) -> list[Finding]:
    """What is wrong with a Hugging Face checkpoint, by its headers."""
    from quantize.formats.checkpoint import QuantizedCheckpoint

    level = WARNING  # a model that is none of ours is no damaged model
    try:
        spec = load_spec(directory)
        opened = QuantizedCheckpoint.open(directory)
        level = ERROR
        opened.verify(spec)
    except ModelError as error:
        return [Finding(error.what, error.where or str(directory), error.why or "", error.fix or "", level)]
    return []


def _runners(quantization: Mapping[str, Any]) -> list[Runner]:
    if "unreadable" in quantization:
        return []
    kinds = quantization.get("schemes", ())
    schemes = {(kind["quant_algo"], kind["group_size"]) for kind in kinds} or {(None, None)}
    return runners(schemes, quantization.get("kv_cache_quant_algo"), form=quantization.get("format"))


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


def artifact_at(path: Path) -> Artifact | None:
    """The artifact at `path`; None where a directory with a model in Hugging Face layout is there.

    Raises UsageError where neither is.
    """
    if (path / "manifest.json").is_file():
        return Artifact.open(path)
    if (path / "config.json").is_file() and not (is_engine_dir(path) or is_rank_checkpoint(path)):
        return None
    raise UsageError(
        f"{path} is neither an artifact nor a checkpoint" if path.exists() else f"{path} does not exist",
        why=f"it is no directory in Hugging Face layout: `llmbuild inspect {path}` says what it is"
        if path.exists()
        else None,
        fix="name artifacts/NAME, or a directory in Hugging Face layout",
    )


def inspect_path(
    path: Path, *, target: str | None = None, weights: bool = False
) -> Artifact | CheckpointFacts | Described:
    """Whatever `path` is: an artifact of ours, a model, TensorRT-LLM's ranks or engines, a Triton repository.

    Args:
        path: a directory.
        target: the version of TensorRT-LLM that will build or run it, if that matters.
        weights: read every weight of rank files.
    """
    if (path / "manifest.json").is_file():
        return Artifact.open(path)
    if is_engine_dir(path):
        return describe_engines(path, target=target)
    if is_rank_checkpoint(path):
        return describe_ranks(path, target=target, weights=weights)
    if (path / "config.json").is_file():
        return inspect_checkpoint(path)
    if is_repository(path):
        return describe_repository(path, target=target)
    why = fix = None
    if (path / "config.pbtxt").is_file():
        why, fix = "it is one model of a Triton repository", f"name the repository: {path.resolve().parent}"
    elif path.exists():
        why = "there is no manifest.json, no config.json and no model with a config.pbtxt in it"
    raise UsageError(
        f"nothing that is known lies at {path}" if path.exists() else f"{path} does not exist",
        why=why,
        fix=fix
        or "name an artifact, a model in Hugging Face layout, a TensorRT-LLM checkpoint or engine "
        "directory, or a Triton repository",
    )
