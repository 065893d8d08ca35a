"""Check a model repository before Triton does: all problems at once, in words."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from deploy.pbtxt import CONFIG, read_config
from toolchain.errors import PackageError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

POLICIES = ("guaranteed_no_evict", "max_utilization")


def check_repository(repository: Path) -> None:
    """Raise PackageError listing everything that keeps `repository` from loading or serving."""
    directories = sorted(path for path in repository.iterdir() if path.is_dir())
    problems: list[str] = []
    configs: dict[str, ModelConfig] = {}
    for directory in directories:
        try:
            configs[directory.name] = read_config(directory / CONFIG)
        except PackageError as error:
            problems.append(str(error))
        except OSError as error:
            problems.append(f"{directory.name}: cannot read {CONFIG}: {error.strerror}")
    for name, config in configs.items():
        problems += _model_problems(repository / name, config)
        if config.platform == "ensemble":
            problems += _ensemble_problems(config, configs)
    problems += _shared_problems(configs)
    engine = configs.get("tensorrt_llm")
    if engine is not None and engine.backend == "python":
        problems += _engine_problems(repository, engine)
    if problems:
        raise PackageError(
            f"the model repository would not load: {len(problems)} problem(s)",
            where=str(repository),
            why="\n       ".join(problems),
        )


def _model_problems(directory: Path, config: ModelConfig) -> Iterator[str]:
    if config.name != directory.name:
        yield f"{directory.name}: config.pbtxt is of a model named {config.name!r}"
    if not (directory / "1").is_dir():
        yield f"{directory.name}: there is no version directory 1"
    if config.backend == "python":
        if not (directory / "1" / "model.py").is_file():
            yield f"{directory.name}: 1/model.py is missing"
        for file in sorted((directory / "1").glob("*.py")):
            try:
                ast.parse(file.read_bytes())
            except SyntaxError as error:
                yield f"{directory.name}: 1/{file.name}:{error.lineno}: {error.msg}"


def _ensemble_problems(config: ModelConfig, configs: dict[str, ModelConfig]) -> Iterator[str]:
    """Each tensor has one source, of the type that its users expect."""
    sources: dict[str, Any] = {tensor.name: tensor for tensor in config.input}
    targets: list[tuple[str, str, Any]] = []  # user, ensemble tensor, what the user declares
    for step in config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            yield f"{config.name}: step {step.model_name!r} is no model of this repository"
            continue
        inputs = {tensor.name: tensor for tensor in model.input}
        outputs = {tensor.name: tensor for tensor in model.output}
        for key in sorted(step.input_map):
            if key not in inputs:
                yield f"{config.name}: {step.model_name} has no input {key!r}"
            else:
                targets.append((f"{step.model_name}.{key}", step.input_map[key], inputs[key]))
        for key in sorted(step.output_map):
            if key not in outputs:
                yield f"{config.name}: {step.model_name} has no output {key!r}"
            else:
                sources[step.output_map[key]] = outputs[key]
        for name, tensor in inputs.items():
            if not tensor.optional and name not in step.input_map:
                yield f"{config.name}: required input {step.model_name}.{name} is not connected"
    targets += [(f"output {tensor.name}", tensor.name, tensor) for tensor in config.output]
    for user, name, declared in targets:
        source = sources.get(name)
        if source is None:
            yield f"{config.name}: {user} takes {name!r}, which nothing makes"
        elif source.data_type != declared.data_type:
            yield f"{config.name}: {user} and the source of {name!r} differ in data type"
        elif len(source.dims) != len(declared.dims):
            yield f"{config.name}: {user} and the source of {name!r} differ in rank"


def _shared_problems(configs: dict[str, ModelConfig]) -> Iterator[str]:
    sizes = {name: config.max_batch_size for name, config in configs.items()}
    if len(set(sizes.values())) > 1:
        yield f"max_batch_size differs: {sizes}"
    decoupled = {
        name: configs[name].model_transaction_policy.decoupled
        for name in ("ensemble", "tensorrt_llm", "tensorrt_llm_bls")
        if name in configs
    }
    if len(set(decoupled.values())) > 1:
        yield f"decoupled differs: {decoupled}"


def _engine_problems(repository: Path, config: ModelConfig) -> Iterator[str]:
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
    if numbers["max_tokens_in_paged_kv_cache"] < numbers["max_seq_len"]:
        yield (
            f"tensorrt_llm: max_tokens_in_paged_kv_cache {numbers['max_tokens_in_paged_kv_cache']} is less "
            f"than one sequence of max_seq_len {numbers['max_seq_len']}"
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
    yield from _tokenizer_problems(tokenizer, numbers["vocab_size"])


def _tokenizer_problems(file: Path, vocab_size: int) -> Iterator[str]:
    from tokenizers import Tokenizer

    if not file.is_file():
        yield f"tensorrt_llm: there is no {file.name} in {file.parent}"
        return
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        yield f"the tokenizer cannot be read: {error}"
        return
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        yield f"the tokenizer has token {largest}, the model's vocabulary only {vocab_size}"


def _logits_width(graph: Path) -> int | None:
    """Last dimension of the graph's one result; None when it is not fixed."""
    for _, element in ElementTree.iterparse(graph):
        if element.tag == "layer":
            if element.get("type") == "Result":
                width = int(element.findall("input/port/dim")[-1].text or -1)
                return width if width > 0 else None
            element.clear()
    return None
