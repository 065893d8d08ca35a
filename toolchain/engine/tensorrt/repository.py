"""The repository stage of the tensorrt flavour: from a recipe to `deploy.repositories.tensorrt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.engine.base import Config

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

# Fields of `deploy.tensorrt_llm` that are no parameters of the backend.
_OURS = ("mode", "spawn_processes", "max_queue_delay_microseconds", "draft")
_TYPES = {
    "logits": "logits_datatype",
    "encoder_input_features": "encoder_input_features_data_type",
    "prompt_embedding_table": "prompt_embedding_table_data_type",
}


def repository_config(recipe: Recipe) -> Config:
    """What `render_repository` depends on."""
    from toolchain.engine.front import front_config
    from toolchain.plan.releases import default_version
    from toolchain.recipe.triton import TensorRTLLM

    engine, deploy = recipe.engine, recipe.deploy
    section = deploy.tensorrt_llm or TensorRTLLM()
    values = section.model_dump(mode="json")
    parameters = {key: value for key, value in values.items() if key not in (*_OURS, *_TYPES.values())}
    parameters["max_beam_width"] = section.max_beam_width or engine.build.max_beam_width or 1
    return {
        **front_config(recipe),
        "version": engine.version or default_version("tensorrt"),
        "kv_cache_free_gpu_mem_fraction": engine.kv_cache.free_gpu_mem_fraction,
        "max_tokens_in_paged_kv_cache": engine.kv_cache.max_tokens,
        "enable_kv_cache_reuse": engine.kv_cache.reuse,
        "enable_chunked_context": engine.chunked_prefill,
        "max_queue_delay_microseconds": section.max_queue_delay_microseconds,
        "batching": deploy.batching,
        "batch_scheduler_policy": deploy.scheduler,
        "parameters": {key: value for key, value in parameters.items() if value is not None},
        "types": {kind: values[name] for kind, name in _TYPES.items()},
        "draft": values["draft"],
    }


def render_repository(
    engine: Path, checkpoint: Path, out_dir: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the repository around `engine`; the tokenizer is the checkpoint's. Return facts.

    Args:
        engine: a directory of rank engines with its config.json.
        checkpoint: the Hugging Face checkpoint that the engine was made from.
        out_dir: empty.
        config: of `repository_config`; other keys are ignored.
    """
    from deploy.repositories.tensorrt import DraftEngine, TensorRTSettings, render_tensorrt
    from toolchain.engine.front import front_facts
    from toolchain.model.spec import load_spec

    names = TensorRTSettings.__dataclass_fields__
    values = {key: value for key, value in config.items() if key in names}
    draft = values.pop("draft")
    settings = TensorRTSettings(
        engine_dir=engine,
        tokenizer_dir=checkpoint,
        draft=DraftEngine(**draft) if draft else None,
        **front_facts(load_spec(checkpoint)),
        **values,
    )
    render_tensorrt(out_dir, settings)
    return {"tensorrt_llm": settings.version}
