"""The repository of Triton's vLLM backend, and a front with the tensors of the other flavours.

    ensemble -> vllm_model

`vllm_model` is as the backend's own documents have it, but for what it would fill in by itself: with
`--disable-auto-complete-config` it fills in nothing, so its tensors, its transaction policy and its batch
size stand in config.pbtxt. It can be asked directly, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy import tensors
from deploy.pbtxt import model_config
from deploy.repositories.common import SOURCES, checkpoint_files, flag, write_repository
from deploy.tensors import Tensor

VLLM_MODEL = "vllm_model"
CHECKPOINT = "vllm_model/1/checkpoint"
MODEL_JSON = "vllm_model/1/model.json"

VLLM_INPUTS: tuple[Tensor, ...] = (
    Tensor("text_input", "STRING", (1,), optional=False),
    Tensor("image", "STRING", (-1,)),
    Tensor("stream", "BOOL", (1,)),
    Tensor("sampling_parameters", "STRING", (1,)),
    Tensor("exclude_input_in_output", "BOOL", (1,)),
    Tensor("return_finish_reason", "BOOL", (1,)),
    Tensor("return_cumulative_logprob", "BOOL", (1,)),
    Tensor("return_logprobs", "BOOL", (1,)),
    Tensor("return_num_input_tokens", "BOOL", (1,)),
    Tensor("return_num_output_tokens", "BOOL", (1,)),
    Tensor("embedding_request", "STRING", (1,)),
)
VLLM_OUTPUTS: tuple[Tensor, ...] = (
    Tensor("text_output", "STRING", (-1,)),
    Tensor("finish_reason", "STRING", (-1,)),
    Tensor("cumulative_logprob", "FP32", (-1,)),
    Tensor("logprobs", "STRING", (-1,)),
    Tensor("num_input_tokens", "UINT32", (1,)),
    Tensor("num_output_tokens", "UINT32", (-1,)),
)
"""What the backend declares by itself where it may."""


@dataclass(frozen=True)
class VllmSettings:
    """What a repository of the vLLM backend serves.

    Args:
        checkpoint_dir: of Hugging Face's form; hard-linked into the repository if the arguments' `model` is
            `CHECKPOINT`.
        arguments: of vLLM's engine; `model` is among them.
        max_requests: that `ensemble` works on at a time.
    """

    checkpoint_dir: Path
    arguments: Mapping[str, Any]
    max_requests: int
    streaming: bool = True
    exclude_input_in_output: bool = True


def render_vllm(out_dir: Path, settings: VllmSettings) -> None:
    """Write a repository into `out_dir`, which must not exist or be empty, and check it.

    The same settings give the same bytes. Raises PackageError when the result could not be loaded.
    """
    front = model_config(
        "ensemble",
        inputs=tensors.TEXT_INPUTS,
        outputs=(tensors.TEXT_OUTPUT, tensors.FINISH_REASON, *tensors.EXTRA_OUTPUTS),
        max_batch_size=1,
        decoupled=settings.streaming,
        parameters={
            "vllm_model_name": VLLM_MODEL,
            "max_requests": str(settings.max_requests),
            "exclude_input_in_output": flag(settings.exclude_input_in_output),
        },
    )
    engine = model_config(
        VLLM_MODEL,
        inputs=VLLM_INPUTS,
        outputs=VLLM_OUTPUTS,
        max_batch_size=0,  # vLLM batches
        decoupled=True,  # it asserts so
        backend="vllm",
        kind="KIND_MODEL",
    )
    linked = []
    if settings.arguments["model"] == CHECKPOINT:
        linked.append((settings.checkpoint_dir, checkpoint_files(settings.checkpoint_dir), CHECKPOINT))
    write_repository(
        out_dir,
        {"ensemble": front, VLLM_MODEL: engine},
        {"ensemble": SOURCES / "vllm" / "ensemble"},
        linked,
        {MODEL_JSON: json.dumps(dict(settings.arguments), indent=2) + "\n"},
    )


def serve_command(arguments: Mapping[str, Any]) -> list[str]:
    """`vllm serve` with the same arguments: vLLM's own OpenAI server, without Triton."""
    command = ["vllm", "serve", str(arguments["model"])]
    for name, value in arguments.items():
        option = "--" + name.replace("_", "-")
        if name == "model" or value is None:
            continue
        if isinstance(value, bool):
            command.append(option if value else option.replace("--", "--no-", 1))
        else:
            command += [option, value if isinstance(value, str) else json.dumps(value)]
    return command
