"""Check a model repository before Triton does: all problems at once, in words."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.pbtxt import CONFIG, read_config
from deploy.repositories.check_llmapi import llmapi_problems
from deploy.repositories.check_openvino import openvino_problems
from deploy.repositories.check_tensorrt import tensorrt_problems
from deploy.repositories.check_vllm import vllm_problems
from toolchain.errors import PackageError

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


def check_repository(repository: Path) -> None:
    """Raise PackageError listing everything that keeps `repository` from loading or serving."""
    problems = repository_problems(repository)
    if problems:
        raise PackageError(
            f"the model repository would not load: {len(problems)} problem(s)",
            where=str(repository),
            why="\n       ".join(problems),
        )


def repository_problems(repository: Path) -> list[str]:
    """Everything that keeps `repository` from loading or serving, a sentence each; empty if nothing does."""
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
    for name, config in configs.items():
        problems += _engine_problems(repository, name, config, configs)
    return problems


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
    sizes = {name: config.max_batch_size for name, config in configs.items() if config.backend != "vllm"}
    if len(set(sizes.values())) > 1:
        yield f"max_batch_size differs: {sizes}"
    decoupled = {
        name: configs[name].model_transaction_policy.decoupled
        for name in ("ensemble", "tensorrt_llm", "tensorrt_llm_bls")
        if name in configs
    }
    if len(set(decoupled.values())) > 1:
        yield f"decoupled differs: {decoupled}"


def _engine_problems(
    repository: Path, name: str, config: ModelConfig, configs: dict[str, ModelConfig]
) -> Iterator[str]:
    """What only the engine of one flavour needs."""
    if config.backend == "tensorrtllm":
        yield from tensorrt_problems(repository, name, config, drafted="tensorrt_llm_draft" in configs)
    elif name == "tensorrt_llm" and config.backend == "python":
        is_llmapi = "gpt_model_path" not in config.parameters  # its arguments are in a model.yaml
        yield from (llmapi_problems if is_llmapi else openvino_problems)(repository, config)
    elif config.backend == "vllm":
        yield from vllm_problems(repository, name, config)
