"""Check a model of Triton's vLLM backend: its model.json, and the checkpoint if it lies here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


def vllm_problems(repository: Path, name: str, config: ModelConfig) -> Iterator[str]:
    """What keeps the model from serving."""
    if not config.model_transaction_policy.decoupled:
        yield f"{name}: the vllm backend works decoupled only"
    if config.max_batch_size:
        yield f"{name}: max_batch_size must be 0, because vLLM batches"
    try:
        arguments = json.loads((repository / name / "1/model.json").read_text(encoding="utf-8"))
        if not isinstance(arguments, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError) as error:
        yield f"{name}: 1/model.json cannot be read: {error}"
        return
    model = arguments.get("model")
    if not isinstance(model, str) or not model:
        yield f"{name}: model.json names no model"
    elif model.startswith(f"{name}/") and not (repository / model / "config.json").is_file():
        yield f"{name}: there is no checkpoint with a config.json in {model!r}"
