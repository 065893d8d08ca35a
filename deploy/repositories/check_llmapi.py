"""Check the engine model of an LLM API repository: its model.yaml, and the checkpoint if it lies here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.repositories.check_tokenizer import tokenizer_problems

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

NAME = "tensorrt_llm"


def llmapi_problems(repository: Path, config: ModelConfig) -> Iterator[str]:
    """What keeps the model from serving."""
    try:
        arguments = yaml.safe_load((repository / NAME / "1/model.yaml").read_text(encoding="utf-8"))
        if not isinstance(arguments, dict):
            raise ValueError("it is no mapping")
    except (OSError, ValueError, yaml.YAMLError) as error:
        yield f"{NAME}: 1/model.yaml cannot be read: {error}"
        return
    yield from _triton_config_problems(config, arguments.get("triton_config"))
    model = arguments.get("model")
    if not isinstance(model, str) or not model:
        yield f"{NAME}: model.yaml names no model"
    elif model.startswith(f"{NAME}/") and not (repository / model / "config.json").is_file():
        yield f"{NAME}: there is no checkpoint with a config.json in {model!r}"
    vocabulary = config.parameters["vocab_size"].string_value
    if not vocabulary.isdecimal():
        yield f"{NAME}: parameter vocab_size is {vocabulary!r}, not a number"
    else:
        tokenizer = repository / "preprocessing/1/tokenizer/tokenizer.json"
        yield from tokenizer_problems(tokenizer, int(vocabulary))


def _triton_config_problems(config: ModelConfig, stated: Any) -> Iterator[str]:
    """config.pbtxt and model.yaml agree: which of the two counts depends on how Triton was started."""
    if not isinstance(stated, dict):
        yield f"{NAME}: model.yaml has no triton_config"
        return
    actual = {
        "max_batch_size": config.max_batch_size,
        "decoupled": config.model_transaction_policy.decoupled,
    }
    for key, value in actual.items():
        if stated.get(key) != value:
            yield f"{NAME}: {key} is {value} in config.pbtxt and {stated.get(key)} in model.yaml"
