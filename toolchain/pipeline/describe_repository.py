"""What a Triton model repository serves: TensorRT-LLM engines, its LLM API, vLLM, or our CPU engine."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from deploy.check import repository_problems
from deploy.pbtxt import CONFIG, read_config
from toolchain.engine.tensorrt.stamp import is_engine_dir
from toolchain.errors import PackageError
from toolchain.findings import ERROR, WARNING, Finding
from toolchain.pipeline.describe_tensorrt import describe_engines
from toolchain.pipeline.described import Described
from toolchain.plan.releases import default_version, release
from toolchain.plan.runs import Runner

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

TENSORRT, LLMAPI, VLLM, OPENVINO = "tensorrt", "pytorch", "vllm", "openvino"
KINDS = {
    TENSORRT: "Triton repository, TensorRT-LLM engines (tensorrtllm backend)",
    LLMAPI: "Triton repository, TensorRT-LLM's LLM API (llmapi)",
    VLLM: "Triton repository, vLLM",
    OPENVINO: "Triton repository of llmbuild's CPU engine",
}

_OPEN = re.compile(r"\$\{(\w+)\}")
_PARAMETERS = (
    *("gpt_model_type", "batch_scheduler_policy", "max_beam_width", "max_tokens_in_paged_kv_cache"),
    *("kv_cache_free_gpu_mem_fraction", "enable_kv_cache_reuse", "enable_chunked_context", "max_seq_len"),
    *("decoding_mode", "gpu_device_ids", "plugin_properties"),
)


def is_repository(path: Path) -> bool:
    """Whether a directory holds directories with a config.pbtxt."""
    return path.is_dir() and any((inner / CONFIG).is_file() for inner in path.iterdir())


def describe_repository(repository: Path, *, target: str | None = None) -> Described:
    """A model repository, checked.

    Args:
        repository: its models are the directories in it.
        target: the version of TensorRT-LLM that is to run it.
    """
    configs: dict[str, ModelConfig] = {}
    found = Described("Triton repository", repository)
    left_open = False
    for file in sorted(repository.glob(f"*/{CONFIG}")):
        if names := _left_open(file):
            left_open = True
            found.findings.append(
                Finding(
                    f"{', '.join(names)} {'were' if len(names) > 1 else 'was'} not filled in",
                    str(file),
                    "Triton reads ${...} as a value only within a string parameter",
                    "fill the template: fill_template.py FILE 'name:value,...' -i",
                )
            )
            continue
        try:
            config = configs[file.parent.name] = read_config(file)
        except PackageError as error:
            found.findings.append(Finding(error.what, error.where or "", error.why or "", error.fix or ""))
            continue
        found.parts.append(
            {
                "model": file.parent.name,
                "backend": config.backend or config.platform,
                "max_batch_size": config.max_batch_size,
                "decoupled": config.model_transaction_policy.decoupled,
                "instances": sum(group.count for group in config.instance_group) or 1,
            }
        )
    flavour, engine = _engine_model(repository, configs)
    if flavour is not None and engine is not None:
        found.kind = KINDS[flavour]
        found.facts["flavour"] = flavour
        _tell(found, flavour, engine, configs[engine], target)
    if not left_open:
        known = {finding.where for finding in found.findings}
        strict = flavour == VLLM or (repository / "preprocessing" / "1" / "tokenizer").is_dir()
        found.findings += [
            _of_problem(problem, repository, strict)
            for problem in repository_problems(repository)
            if not any(where in problem for where in known)
        ]
    return found


def _of_problem(problem: str, repository: Path, strict: bool) -> Finding:
    """Of somebody else's repository a problem is a warning: what it holds may lie where it is served."""
    left_open = "${" in problem
    return Finding(
        problem,
        str(repository),
        "the backend takes its default for it" if left_open else "",
        "render it again, or mend it where it says",
        WARNING if left_open or not strict else ERROR,
    )


def _left_open(file: Path) -> list[str]:
    """The variables of a template that stand outside a string parameter."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [name for line in lines if "string_value" not in line for name in _OPEN.findall(line)]
    return list(dict.fromkeys(names))


def _engine_model(repository: Path, configs: Mapping[str, ModelConfig]) -> tuple[str | None, str | None]:
    """The flavour, and the model that has the engine."""
    for name, config in configs.items():
        if config.backend == "tensorrtllm":
            return TENSORRT, name
        if config.backend == "vllm":
            return VLLM, name
        if config.backend == "python" and (repository / name / "1" / "model.yaml").is_file():
            return LLMAPI, name
    config = configs.get("tensorrt_llm")
    if config is None or config.backend != "python":
        return None, None
    return (OPENVINO if "plugin_properties" in config.parameters else TENSORRT), "tensorrt_llm"


def _tell(found: Described, flavour: str, name: str, config: ModelConfig, target: str | None) -> None:
    """What the engine model says, and what runs it."""
    values = {key: config.parameters[key].string_value for key in config.parameters}
    found.facts |= {key: values[key] for key in _PARAMETERS if values.get(key) and "${" not in values[key]}
    directory = found.path / name / "1"
    if flavour == TENSORRT:
        path = values.get("gpt_model_path", "")
        found.facts["engine"] = path
        engine = found.path / path
        if path and is_engine_dir(engine):
            inner = describe_engines(engine, target=target)
            found.facts |= {
                key: inner.facts[key] for key in ("tensorrt_llm", "world_size") if key in inner.facts
            }
            found.findings += inner.findings
            found.runners = inner.runners
    elif flavour == LLMAPI:
        found.facts["model"] = _arguments(directory / "model.yaml").get("model")
        version = target or default_version("pytorch")
        known = release(version)
        found.runners = [Runner(LLMAPI, known.image or "" if known else "", version)]
    elif flavour == VLLM:
        found.facts["model"] = _arguments(directory / "model.json").get("model")
        found.runners = [Runner(VLLM, note="a Triton container with the vLLM backend")]
    else:
        found.runners = [Runner(OPENVINO, note="any x86 CPU: llmbuild serve")]


def _arguments(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError):
        return {}  # the checks tell why
    return values if isinstance(values, dict) else {}
