"""The `deploy` section: how the server treats requests, and what only one engine's server knows."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from toolchain.recipe.section import Section
from toolchain.recipe.triton import Place, TensorRTLLM


class Arguments(dict[str, Any]):
    """Arguments by name, as a value: hashable, because a recipe is."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(json.dumps(self, sort_keys=True))


Processes = Annotated[int, Field(ge=1, le=64)]


class Deploy(Section):
    """How the Triton server treats requests."""

    batching: Literal["inflight_fused", "static"] = Field(
        default="inflight_fused",
        description="inflight_fused: requests join and leave the running batch between steps. static: a "
        "batch runs until its longest answer is done.",
    )
    scheduler: Literal["guaranteed_no_evict", "max_utilization"] = Field(
        default="guaranteed_no_evict",
        description="batch_scheduler_policy. guaranteed_no_evict admits a request only if its whole "
        "answer fits the KV cache; max_utilization admits more and may pause and recompute "
        "some.",
    )
    streaming: bool = Field(
        default=True,
        description="Serve decoupled: tokens leave as they are made. Clients must then use a streaming call.",
    )
    max_queue_size: int = Field(
        default=1000,
        ge=0,
        le=1_000_000,
        description="Requests that may wait; beyond it the answer is `unavailable` at once. 0: no limit.",
    )
    accumulate_tokens: bool = Field(
        default=False, description="tensorrt_llm_bls answers with all the text so far, not with what is new."
    )
    preprocessing_instance_count: Processes = Field(
        default=1, description="Processes that turn text into tokens. Raise it when they cannot keep up."
    )
    postprocessing_instance_count: Processes = Field(
        default=1, description="Processes that turn tokens into text, where the engine does not."
    )
    bls_instance_count: Processes = Field(default=1, description="Processes of tensorrt_llm_bls.")
    checkpoint: Place | None = Field(
        default=None,
        description="pytorch and vllm: where the server finds the checkpoint, a directory there or a Hub id. "
        "null: inside the repository.",
    )
    engine_args: Annotated[dict[str, Any], AfterValidator(Arguments)] = Field(
        default_factory=Arguments,
        description="pytorch and vllm: further arguments by their own names, for the LLM API (model.yaml) or "
        "vLLM's engine (model.json). Unknown names of the version are errors.",
    )
    tensorrt_llm: TensorRTLLM | None = Field(
        default=None, description="tensorrt: parameters of Triton's backend, by their own names."
    )
