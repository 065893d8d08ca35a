"""What an engine directory is tied to: TensorRT-LLM, TensorRT, GPU architecture and number of ranks.

trtllm-build writes the version and the ranks into `config.json`; `llmbuild_engine.json` beside it adds what
that leaves out. An engine of another tool has no such stamp, and its GPU is then not known.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import ModelError, UsageError
from toolchain.model.config_json import read_json_object

STAMP = "llmbuild_engine.json"


@dataclass(frozen=True)
class EngineFacts:
    """What decides where engines load; None for what is not known.

    Args:
        tensorrt_llm: the version that built them.
        tensor, pipeline: over how many GPUs they are split.
        world_size: number of ranks.
        tensorrt: TensorRT's version.
        sm: compute capability x 10 of the GPU that they were built on.
        gpu: its name.
    """

    tensorrt_llm: str
    tensor: int
    pipeline: int
    world_size: int
    tensorrt: str | None = None
    sm: int | None = None
    gpu: str | None = None


def is_engine_dir(path: Path) -> bool:
    """Whether `path` holds engines, or what should be some: a config.json of trtllm-build."""
    try:
        config = read_json_object(path / "config.json")
    except ModelError:
        return False
    return "pretrained_config" in config and "build_config" in config


def write_stamp(directory: Path, facts: EngineFacts) -> None:
    """Stamp the engines in `directory`."""
    (directory / STAMP).write_text(json.dumps({"schema": 1, **asdict(facts)}, indent=2) + "\n", "utf-8")


def read_engine(directory: Path) -> EngineFacts:
    """The facts of an engine directory, from its config.json and its stamp if it has one.

    Raises:
        UsageError: it holds no engines.
        ModelError: its config.json or its stamp is not JSON.
    """
    file = directory / "config.json"
    if not file.is_file():
        why = "there is no config.json" if directory.is_dir() else "there is no such directory"
        raise _no_engine(directory, why)
    config = read_json_object(file)
    try:
        mapping: dict[str, Any] = config["pretrained_config"]["mapping"]
        tensor, pipeline = int(mapping.get("tp_size", 1)), int(mapping.get("pp_size", 1))
        world_size = int(mapping.get("world_size", tensor * pipeline * int(mapping.get("cp_size", 1))))
        version = str(config["version"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _no_engine(directory, "its config.json has no version and mapping of trtllm-build") from None
    stamp = read_json_object(directory / STAMP) if (directory / STAMP).is_file() else {}
    sm = stamp.get("sm")
    return EngineFacts(
        version,
        tensor,
        pipeline,
        world_size,
        tensorrt=_text(stamp.get("tensorrt")),
        sm=sm if isinstance(sm, int) else None,
        gpu=_text(stamp.get("gpu")),
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _no_engine(directory: Path, why: str) -> UsageError:
    return UsageError(
        "this is no directory of TensorRT-LLM engines",
        where=str(directory),
        why=why,
        fix="name the directory with rank0.engine and config.json, such as artifacts/NAME/engine",
    )
