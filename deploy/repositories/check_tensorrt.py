"""Check a model of the backend `tensorrtllm`: its parameters, and the engine if it lies in the repository."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.repositories.check_tokenizer import tokenizer_problems

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

CHOICES = {
    "batch_scheduler_policy": ("guaranteed_no_evict", "max_utilization"),
    "gpt_model_type": ("inflight_fused_batching", "inflight_batching", "V1"),
}
FRACTIONS = (
    "kv_cache_free_gpu_mem_fraction",
    "cross_kv_cache_fraction",
    "lora_cache_gpu_memory_fraction",
    "gpu_weights_percent",
)
NOT_SPECULATIVE = 1
"""build_config.speculative_decoding_mode of an engine built without one."""


def tensorrt_problems(repository: Path, name: str, config: ModelConfig, *, drafted: bool) -> Iterator[str]:
    """What keeps the model from serving; `drafted`: there is a draft model beside it."""
    values = {key: config.parameters[key].string_value for key in config.parameters}
    for key, value in values.items():
        if "${" in value:
            yield f"{name}: parameter {key} was left open: {value!r}"
    for key, choices in CHOICES.items():
        if values.get(key) not in choices:
            yield f"{name}: parameter {key} is {values.get(key)!r}, not one of {', '.join(choices)}"
    for key in FRACTIONS:
        if key in values and not _is_fraction(values[key]):
            yield f"{name}: parameter {key} is {values[key]!r}, not a number from 0 to 1"
    if not config.HasField("dynamic_batching"):
        yield f"{name}: dynamic_batching is missing, so requests would come one by one"
    path = values.get("gpt_model_path", "")
    if not path:
        yield f"{name}: parameter gpt_model_path is missing"
        return
    engine = repository / path
    facts = _engine_config(engine)
    if Path(path).is_absolute() or not path.startswith(f"{name}/"):
        facts = None  # where the server runs, not here
    elif facts is None:
        yield f"{name}: there is no engine with a config.json in {path!r}"
    if facts is not None:
        yield from _engine_problems(engine, name, values, facts)
        if drafted and name == "tensorrt_llm" and _mode(facts) == NOT_SPECULATIVE:
            yield f"{name}: a draft model needs an engine built with draft_tokens_external"
    yield from _device_problems(name, config, values, facts)
    if name == "tensorrt_llm":
        yield from _text_problems(repository, name, values, facts)


def _engine_problems(
    engine: Path, name: str, values: Mapping[str, str], facts: Mapping[str, Any]
) -> Iterator[str]:
    build = facts.get("build_config", {})
    ranks = {f"rank{rank}.engine" for rank in range(_world_size(facts))}
    missing = sorted(rank for rank in ranks if not (engine / rank).is_file())
    if missing:
        yield f"{name}: of the {len(ranks)} ranks of the engine {', '.join(missing)} are missing"
    beam = values.get("max_beam_width", "1")
    if not beam.isdecimal() or not 1 <= int(beam) <= build.get("max_beam_width", int(beam)):
        built = build.get("max_beam_width", "any number of")
        yield f"{name}: max_beam_width is {beam!r}, and the engine was built for {built}"
    paged = build.get("plugin_config", {}).get("use_paged_context_fmha", True)
    for key in ("enable_kv_cache_reuse", "enable_chunked_context"):
        if values.get(key) == "true" and not paged:
            yield f"{name}: {key} needs an engine built with use_paged_context_fmha"


def _device_problems(
    name: str, config: ModelConfig, values: Mapping[str, str], facts: Mapping[str, Any] | None
) -> Iterator[str]:
    count = config.instance_group[0].count if config.instance_group else 1
    if "gpu_device_ids" not in values:
        if count > 1:
            yield f"{name}: {count} instances need gpu_device_ids, one group each"
        return
    try:
        groups = [[int(gpu) for gpu in group.split(",")] for group in values["gpu_device_ids"].split(";")]
    except ValueError:
        yield f"{name}: gpu_device_ids is {values['gpu_device_ids']!r}, not numbers such as 0,1;2,3"
        return
    if len(groups) != count:
        yield f"{name}: gpu_device_ids has {len(groups)} groups for {count} instances"
    every = [gpu for group in groups for gpu in group]
    if len(set(every)) < len(every):
        yield f"{name}: gpu_device_ids names a GPU twice"
    if facts is not None and any(len(group) != _world_size(facts) for group in groups):
        yield f"{name}: each group of gpu_device_ids needs {_world_size(facts)} GPUs, one a rank"


def _text_problems(
    repository: Path, name: str, values: Mapping[str, str], facts: Mapping[str, Any] | None
) -> Iterator[str]:
    """The tokenizer and what guided decoding knows of it."""
    if facts is not None:
        file = repository / values.get("tokenizer_dir", "") / "tokenizer.json"
        vocabulary = facts.get("pretrained_config", {}).get("vocab_size")
        if vocabulary is not None:
            yield from tokenizer_problems(file, vocabulary)
    if values.get("guided_decoding_backend"):
        path = values.get("xgrammar_tokenizer_info_path", "")
        if not path:
            yield f"{name}: guided decoding needs xgrammar_tokenizer_info_path"
        elif not Path(path).is_absolute():
            info = _json(repository / path)
            keys = {"encoded_vocab", "tokenizer_str", "stop_token_ids"}
            if not isinstance(info, dict) or set(info) != keys:
                yield f"{name}: {path} is no JSON object of {', '.join(sorted(keys))}"


def _engine_config(engine: Path) -> dict[str, Any] | None:
    found = _json(engine / "config.json")
    return found if isinstance(found, dict) else None


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _world_size(facts: Mapping[str, Any]) -> int:
    return int(facts.get("pretrained_config", {}).get("mapping", {}).get("world_size", 1))


def _mode(facts: Mapping[str, Any]) -> Any:
    return facts.get("build_config", {}).get("speculative_decoding_mode", NOT_SPECULATIVE)


def _is_fraction(value: str) -> bool:
    try:
        return 0 <= float(value) <= 1
    except ValueError:
        return False
