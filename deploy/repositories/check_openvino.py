"""Check the engine model of an OpenVINO repository: its parameters, its graph, its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from deploy.repositories.check_tokenizer import tokenizer_problems

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

POLICIES = ("guaranteed_no_evict", "max_utilization")


def openvino_problems(repository: Path, config: ModelConfig) -> Iterator[str]:
    """The parameters of `tensorrt_llm` fit each other, the engine and the tokenizer."""
    values = {key: config.parameters[key].string_value for key in config.parameters}
    numbers: dict[str, int] = {}
    for key in ("vocab_size", "max_seq_len", "max_num_tokens", "max_tokens_in_paged_kv_cache", "pad_id"):
        try:
            numbers[key] = int(values.get(key, ""))
        except ValueError:
            yield f"tensorrt_llm: parameter {key} is {values.get(key, '')!r}, not a number"
    if len(numbers) == 5:
        yield from _limit_problems(config, values, numbers)
        yield from _artifact_problems(repository, values, numbers)
    if values.get("batch_scheduler_policy") not in POLICIES:
        yield f"tensorrt_llm: batch_scheduler_policy must be one of {', '.join(POLICIES)}"
    try:
        properties = json.loads(values.get("plugin_properties", "{}"))
        if not all(isinstance(value, str) for value in properties.values()):
            raise ValueError
    except (ValueError, AttributeError):
        yield "tensorrt_llm: plugin_properties must be a JSON object of strings"


def _limit_problems(config: ModelConfig, values: dict[str, str], numbers: dict[str, int]) -> Iterator[str]:
    batch, tokens = config.max_batch_size, numbers["max_num_tokens"]
    if min(batch, numbers["max_seq_len"] - 1, tokens) < 1:
        yield "tensorrt_llm: max_batch_size and max_num_tokens must be 1 or more, max_seq_len 2 or more"
    drafted = int(values.get("max_draft_len") or 0)
    if numbers["max_tokens_in_paged_kv_cache"] < numbers["max_seq_len"] + drafted:
        yield (
            f"tensorrt_llm: max_tokens_in_paged_kv_cache {numbers['max_tokens_in_paged_kv_cache']} is less "
            f"than one sequence of max_seq_len {numbers['max_seq_len']}"
            + (f" and max_draft_len {drafted}" if drafted else "")
        )
    if values.get("enable_chunked_context") != "true" and tokens < batch:
        yield f"tensorrt_llm: without chunked context max_num_tokens must be max_batch_size {batch} or more"
    end_ids = [int(token) for token in values.get("end_id", "").split(",") if token]
    for token in (*end_ids, numbers["pad_id"]):
        if not 0 <= token < numbers["vocab_size"]:
            yield f"tensorrt_llm: end or pad id {token} is not in the vocabulary of {numbers['vocab_size']}"


def _artifact_problems(repository: Path, values: dict[str, str], numbers: dict[str, int]) -> Iterator[str]:
    graph = repository / values.get("gpt_model_path", "") / "openvino_model.xml"
    missing = [path.name for path in (graph, graph.with_suffix(".bin")) if not path.is_file()]
    if missing:
        yield f"tensorrt_llm: {', '.join(missing)} missing in {values.get('gpt_model_path')!r}"
    else:
        vocabulary = _logits_width(graph)
        if vocabulary is not None and vocabulary != numbers["vocab_size"]:
            yield f"tensorrt_llm: vocab_size is {numbers['vocab_size']}, that of the engine {vocabulary}"
    facts = graph.parent / "config.json"
    if facts.is_file():
        context = json.loads(facts.read_text(encoding="utf-8")).get("max_position_embeddings")
        if context is not None and numbers["max_seq_len"] > context:
            yield f"tensorrt_llm: max_seq_len {numbers['max_seq_len']} exceeds the model's context {context}"
    tokenizer = repository / values.get("tokenizer_dir", "") / "tokenizer.json"
    yield from tokenizer_problems(tokenizer, numbers["vocab_size"])


def _logits_width(graph: Path) -> int | None:
    """Last dimension of the graph's one result; None when it is not fixed."""
    for _, element in ElementTree.iterparse(graph):
        if element.tag == "layer":
            if element.get("type") == "Result":
                width = int(element.findall("input/port/dim")[-1].text or -1)
                return width if width > 0 else None
            element.clear()
    return None
