"""The repository of TensorRT-LLM engines: upstream's `inflight_batcher_llm`, with our Python models.

    ensemble         -> preprocessing -> tensorrt_llm -> postprocessing
    tensorrt_llm_bls -> the same; with a draft engine also tensorrt_llm_draft

`tensorrt_llm` is Triton's C++ backend `tensorrtllm`, which is not on the machines where this is tested:
what is written is checked, and loaded by a real Triton with a stand-in for that one model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.version import Version

from deploy import tensors
from deploy.pbtxt import batch_dynamically, model_config
from deploy.repositories.common import (
    ENGINE_MODEL,
    FRONT_SOURCES,
    TOKENIZER,
    Front,
    Served,
    files_in,
    flag,
    front_configs,
    tokenizer_files,
    write_repository,
)
from deploy.repositories.xgrammar import tokenizer_info

ENGINE = "tensorrt_llm/1/engine"
DRAFT_MODEL = "tensorrt_llm_draft"
TOKENIZER_INFO = "tensorrt_llm/1/xgrammar_tokenizer_info.json"
OLD_NAMES = (
    ("0.20", {"seed": "random_seed", "min_tokens": "min_length"}),
    ("0.19", {"return_perf_metrics": "return_kv_cache_reuse_stats"}),
)
"""(version, what inputs were called before it). Clients use the new names, whatever serves."""

TREES = ("medusa_choices", "eagle_choices")
TARGET_ONLY = (
    *TREES,
    "gpu_device_ids",
    "decoding_mode",
    "guided_decoding_backend",
    "xgrammar_tokenizer_info_path",
    "lookahead_window_size",
    "lookahead_ngram_size",
    "lookahead_verification_set_size",
)
"""Parameters that a draft does not take over from its target."""

Value = bool | int | float | str | Sequence[int] | Sequence[Sequence[int]]


@dataclass(frozen=True)
class DraftEngine:
    """The engine that drafts for speculative decoding; it lies where the server runs."""

    gpt_model_path: str
    kv_cache_free_gpu_mem_fraction: float | None = None
    gpu_device_ids: Sequence[Sequence[int]] | None = None


@dataclass(frozen=True)
class TensorRTSettings(Served):
    """What a repository of TensorRT-LLM engines serves beside what `Served` says, in TensorRT-LLM's words.

    Of the end ids the backend takes the first, and the others as stop words.

    Args:
        engine_dir: rank*.engine and config.json; hard-linked into the repository unless `parameters` has a
            gpt_model_path.
        tokenizer_dir: tokenizer.json, and what belongs to it.
        version: of the TensorRT-LLM that serves.
        parameters: of the backend by name, beyond the fields here; None leaves the backend's default.
        types: of `logits`, `encoder_input_features`, `prompt_embedding_table`: FP32, FP16 or BF16.
        draft: for draft-target speculative decoding.
    """

    engine_dir: Path
    tokenizer_dir: Path
    version: str
    max_queue_delay_microseconds: int = 0
    batching: str = "inflight_fused"
    batch_scheduler_policy: str = "guaranteed_no_evict"
    kv_cache_free_gpu_mem_fraction: float = 0.9
    max_tokens_in_paged_kv_cache: int | None = None
    enable_kv_cache_reuse: bool = True
    enable_chunked_context: bool = True
    parameters: Mapping[str, Value | None] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    draft: DraftEngine | None = None


def render_tensorrt(out_dir: Path, settings: TensorRTSettings) -> None:
    """Write a repository into `out_dir`, which must not exist or be empty, and check it.

    The same settings give the same bytes. Raises PackageError when the result could not be loaded.
    """
    renamed = _old_names(settings.version)
    types = _tensor_types(settings.types)
    front = Front(
        settings,
        engine_makes_text=False,
        supply_end_ids=True,
        renamed=renamed,
        types=types,
        draft_model=DRAFT_MODEL if settings.draft else None,
        takes_draft=True,
    )
    configs = front_configs(front)
    engines = {ENGINE_MODEL: _parameters(settings)}
    if settings.draft is not None:
        engines[DRAFT_MODEL] = _draft_parameters(settings, settings.draft)
    for name, parameters in engines.items():
        config = model_config(
            name,
            inputs=tensors.varied(tensors.ENGINE_INPUTS, types, renamed),
            outputs=tensors.varied(tensors.ENGINE_OUTPUTS, types),
            max_batch_size=settings.max_batch_size,
            decoupled=settings.streaming,
            parameters={key: written(key, value) for key, value in parameters.items() if value is not None},
            backend="tensorrtllm",
        )
        config.instance_group[0].count = _instances(parameters)
        batch_dynamically(
            config,
            max_queue_size=settings.max_queue_size,
            max_queue_delay_us=settings.max_queue_delay_microseconds,
        )
        configs[name] = config
    linked = [(settings.tokenizer_dir, tokenizer_files(settings.tokenizer_dir), TOKENIZER)]
    if engines[ENGINE_MODEL]["gpt_model_path"] == ENGINE:
        linked.append((settings.engine_dir, files_in(settings.engine_dir), ENGINE))
    texts = {}
    if engines[ENGINE_MODEL].get("xgrammar_tokenizer_info_path") == TOKENIZER_INFO:
        texts[TOKENIZER_INFO] = json.dumps(tokenizer_info(settings.tokenizer_dir, settings.end_ids))
    write_repository(out_dir, configs, FRONT_SOURCES, linked, texts)


def _old_names(version: str) -> dict[str, str]:
    """What the backend of that version calls some of its inputs, by their present names."""
    names: dict[str, str] = {}
    for since, old in OLD_NAMES:
        if Version(version) < Version(since):
            names |= old
    return names


def _parameters(settings: TensorRTSettings) -> dict[str, Value | None]:
    parameters: dict[str, Value | None] = {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "V1" if settings.batching == "static" else "inflight_fused_batching",
        "gpt_model_path": ENGINE,
        "batch_scheduler_policy": settings.batch_scheduler_policy,
        "kv_cache_free_gpu_mem_fraction": settings.kv_cache_free_gpu_mem_fraction,
        "max_tokens_in_paged_kv_cache": settings.max_tokens_in_paged_kv_cache,
        "enable_kv_cache_reuse": settings.enable_kv_cache_reuse,
        "enable_chunked_context": settings.enable_chunked_context,
        "exclude_input_in_output": True,
        "max_beam_width": 1,
        "tokenizer_dir": TOKENIZER,
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
    }
    parameters |= {key: value for key, value in settings.parameters.items() if value is not None}
    if parameters.get("guided_decoding_backend") is not None:
        parameters.setdefault("xgrammar_tokenizer_info_path", TOKENIZER_INFO)
    return parameters


def _draft_parameters(settings: TensorRTSettings, draft: DraftEngine) -> dict[str, Value | None]:
    """As the target's, but for what is the target's alone."""
    own = {key: value for key, value in vars(draft).items() if value is not None}
    parameters = {key: value for key, value in _parameters(settings).items() if key not in TARGET_ONLY}
    return parameters | own


def _instances(parameters: Mapping[str, Value | None]) -> int:
    groups = parameters.get("gpu_device_ids")
    return len(groups) if isinstance(groups, Sequence) and groups else 1


def _tensor_types(types: Mapping[str, str]) -> dict[str, str]:
    by_kind = {
        "logits": ("draft_logits", "context_logits", "generation_logits"),
        "encoder_input_features": ("encoder_input_features",),
        "prompt_embedding_table": ("prompt_embedding_table",),
    }
    return {name: types[kind] for kind, names in by_kind.items() if kind in types for name in names}


def written(key: str, value: Value) -> str:
    """A parameter's value as the backend reads it.

    Truth values are true and false; [0, 1] is "0,1"; [[0, 1], [2, 3]] is "0,1;2,3", and for the trees of
    Medusa and EAGLE "{0, 1}, {2, 3}".
    """
    if isinstance(value, bool):
        return flag(value)
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value)
    if key in TREES:
        return ", ".join("{" + _listed(path, ", ") + "}" for path in value)
    return ";".join(map(_listed, value)) if _is_nested(value) else _listed(value)


def _is_nested(value: Sequence[object]) -> bool:
    return bool(value) and isinstance(value[0], Sequence)


def _listed(numbers: object, between: str = ",") -> str:
    assert isinstance(numbers, Sequence)
    return between.join(map(str, numbers))
