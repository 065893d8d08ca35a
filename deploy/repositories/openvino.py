"""The repository of the OpenVINO flavour: everything that it needs lies inside it.

    ensemble         -> preprocessing -> tensorrt_llm (the engine and its detokenizer)
    tensorrt_llm_bls -> preprocessing -> tensorrt_llm                     accumulate_tokens false, the default
                     -> preprocessing -> tensorrt_llm -> postprocessing   accumulate_tokens true

The sources of the models are in `deploy/triton_repo/`; its README says how they behave.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy import tensors
from deploy.pbtxt import model_config
from deploy.repositories.common import (
    FRONT_SOURCES,
    SOURCES,
    TOKENIZER,
    Front,
    Served,
    files_in,
    flag,
    front_configs,
    tokenizer_files,
    write_repository,
)

ENGINE = "tensorrt_llm/1/engine"


@dataclass(frozen=True)
class RepositorySettings(Served):
    """What a repository of the OpenVINO flavour serves, and within which limits, beside what `Served` says.

    Upstream's names where it has one. Tokens are counted in tokens, not blocks.
    """

    engine_dir: Path  # openvino_model.xml and .bin; hard-linked where possible
    tokenizer_dir: Path  # tokenizer.json, and what belongs to it
    max_seq_len: int  # prompt and output together
    max_batch_size: int = field(default=8, kw_only=True)
    max_num_tokens: int = 2048  # tokens in one step, prompts and generation together
    max_tokens_in_paged_kv_cache: int | None = None  # None: max_batch_size full sequences
    enable_kv_cache_reuse: bool = True  # equal beginnings of prompts share their cache
    enable_chunked_context: bool = True  # a long prompt may be split over steps
    batching: str = "inflight_fused"  # or static: a batch runs until its longest answer is done
    batch_scheduler_policy: str = "guaranteed_no_evict"  # or max_utilization
    stream_interval: int | None = None  # tokens a streamed response, after the first; None: by load
    cancellation_check_period_ms: int = 100
    exclude_input_in_output: bool = True
    enable_guided_decoding: bool = False  # engine_dir/guide tries guides
    has_draft: bool = False  # engine_dir/draft guesses tokens for the model to check
    max_draft_len: int = 0  # tokens guessed a step; 0: no speculative decoding
    max_matching_ngram_size: int = 0  # of prompt lookup, which guesses without a draft; 0: off
    plugin_properties: Mapping[str, str] = field(default_factory=dict)  # of OpenVINO's CPU plugin

    @property
    def cache_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        longest = self.max_seq_len + self.max_draft_len
        return self.max_tokens_in_paged_kv_cache or self.max_batch_size * longest


def render_openvino(out_dir: Path, settings: RepositorySettings) -> None:
    """Write a repository into `out_dir`, which must not exist or be empty, and check it.

    The same settings give the same bytes. Raises PackageError when the result could not be loaded.
    """
    front = Front(settings, engine_makes_text=True, supply_end_ids=False)
    engine = model_config(
        "tensorrt_llm",
        inputs=tensors.ENGINE_INPUTS,
        outputs=(*tensors.ENGINE_OUTPUTS, tensors.TEXT_OUTPUT, tensors.FINISH_REASON),
        max_batch_size=settings.max_batch_size,
        decoupled=settings.streaming,
        parameters={"tokenizer_dir": TOKENIZER} | _engine_parameters(settings),
    )
    write_repository(
        out_dir,
        front_configs(front) | {"tensorrt_llm": engine},
        FRONT_SOURCES | {"tensorrt_llm": SOURCES / "openvino" / "tensorrt_llm"},
        [
            (settings.engine_dir, files_in(settings.engine_dir), ENGINE),
            (settings.tokenizer_dir, tokenizer_files(settings.tokenizer_dir), TOKENIZER),
        ],
    )


def _engine_parameters(settings: RepositorySettings) -> dict[str, str]:
    return (
        {
            "gpt_model_type": "V1" if settings.batching == "static" else "inflight_fused_batching",
            "gpt_model_path": ENGINE,
            "max_beam_width": "1",
            "max_seq_len": str(settings.max_seq_len),
            "max_num_tokens": str(settings.max_num_tokens),
            "max_queue_size": str(settings.max_queue_size),
            "max_tokens_in_paged_kv_cache": str(settings.cache_tokens),
            "batch_scheduler_policy": settings.batch_scheduler_policy,
            "enable_kv_cache_reuse": flag(settings.enable_kv_cache_reuse),
            "enable_chunked_context": flag(settings.enable_chunked_context),
            "exclude_input_in_output": flag(settings.exclude_input_in_output),
            "skip_special_tokens": flag(settings.skip_special_tokens),
            "stream_interval": str(settings.stream_interval or 0),
            "cancellation_check_period_ms": str(settings.cancellation_check_period_ms),
            "vocab_size": str(settings.vocab_size),
            "end_id": ",".join(map(str, settings.end_ids)),
            "pad_id": str(settings.pad_id),
            "plugin_properties": json.dumps(dict(settings.plugin_properties), sort_keys=True),
        }
        | _speculation(settings)
        | _guides(settings)
    )


def _guides(settings: RepositorySettings) -> dict[str, str]:
    return {"enable_guided_decoding": "true"} if settings.enable_guided_decoding else {}


def _speculation(settings: RepositorySettings) -> dict[str, str]:
    if not settings.max_draft_len:
        return {}
    guesser = (
        {"draft_model_path": f"{ENGINE}/draft"}
        if settings.has_draft
        else {"max_matching_ngram_size": str(settings.max_matching_ngram_size)}
    )
    return {"max_draft_len": str(settings.max_draft_len)} | guesser
