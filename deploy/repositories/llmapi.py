"""The repository of TensorRT-LLM's LLM API (PyTorch): upstream's `llmapi` form behind the usual front.

    ensemble         -> preprocessing -> tensorrt_llm (the LLM API and its detokenizer)
    tensorrt_llm_bls -> the same as a script

Upstream's `llmapi` repository has one model with tensors of its own. Ours has the tensors of
`inflight_batcher_llm`, so that a client need not know what answers it; and with a model.py of ours the
repository says all of what runs. `model.yaml` is upstream's. Triton is usually started with
`--disable-auto-complete-config`, which skips what upstream's model reads from there: `max_batch_size` and
`decoupled` stand in config.pbtxt, too, and must be the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy import tensors
from deploy.pbtxt import model_config
from deploy.repositories.common import (
    ENGINE_MODEL,
    FRONT_SOURCES,
    SOURCES,
    TOKENIZER,
    Front,
    Served,
    checkpoint_files,
    flag,
    front_configs,
    tokenizer_files,
    write_repository,
)

CHECKPOINT = "tensorrt_llm/1/checkpoint"
MODEL_YAML = "tensorrt_llm/1/model.yaml"


@dataclass(frozen=True)
class LlmApiSettings(Served):
    """What a repository of the LLM API serves, beside what `Served` says.

    Args:
        checkpoint_dir: of Hugging Face's form; hard-linked into the repository if the arguments' `model` is
            `CHECKPOINT`, and the source of the tokenizer in any case.
        arguments: of `tensorrt_llm.LLM`; `model` is among them.
    """

    checkpoint_dir: Path
    arguments: Mapping[str, Any]
    exclude_input_in_output: bool = True
    cancellation_check_period_ms: int = 100


def render_llmapi(out_dir: Path, settings: LlmApiSettings) -> None:
    """Write a repository into `out_dir`, which must not exist or be empty, and check it.

    The same settings give the same bytes. Raises PackageError when the result could not be loaded.
    """
    front = Front(settings, engine_makes_text=True, supply_end_ids=False)
    engine = model_config(
        ENGINE_MODEL,
        inputs=tensors.ENGINE_INPUTS,
        outputs=(*tensors.ENGINE_OUTPUTS, tensors.TEXT_OUTPUT, tensors.FINISH_REASON),
        max_batch_size=settings.max_batch_size,
        decoupled=settings.streaming,
        parameters={
            "vocab_size": str(settings.vocab_size),
            "end_id": ",".join(map(str, settings.end_ids)),
            "pad_id": str(settings.pad_id),
            "max_queue_size": str(settings.max_queue_size),
            "exclude_input_in_output": flag(settings.exclude_input_in_output),
            "cancellation_check_period_ms": str(settings.cancellation_check_period_ms),
        },
    )
    linked = [(settings.checkpoint_dir, tokenizer_files(settings.checkpoint_dir), TOKENIZER)]
    if settings.arguments["model"] == CHECKPOINT:
        linked.append((settings.checkpoint_dir, checkpoint_files(settings.checkpoint_dir), CHECKPOINT))
    write_repository(
        out_dir,
        front_configs(front) | {ENGINE_MODEL: engine},
        FRONT_SOURCES | {ENGINE_MODEL: SOURCES / "llmapi" / "tensorrt_llm"},
        linked,
        {MODEL_YAML: model_yaml(settings)},
    )


def model_yaml(settings: LlmApiSettings) -> str:
    """`model.yaml`: the arguments of the LLM API, and `triton_config`, which repeats config.pbtxt."""
    triton_config = {
        "max_batch_size": settings.max_batch_size,
        "decoupled": settings.streaming,
        "cancellation_check_period_ms": settings.cancellation_check_period_ms,
    }
    return yaml.safe_dump(dict(settings.arguments) | {"triton_config": triton_config}, sort_keys=False)
