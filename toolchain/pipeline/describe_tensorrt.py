"""What TensorRT-LLM's directories hold: rank checkpoints, and engines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolchain.engine.tensorrt.checklist import check_checkpoint
from toolchain.engine.tensorrt.rank import RankFile
from toolchain.engine.tensorrt.rank_config import RankConfig, load_rank_config, parse_rank_config
from toolchain.engine.tensorrt.stamp import read_engine
from toolchain.errors import ModelError
from toolchain.findings import WARNING, Finding
from toolchain.model.config_json import read_json_object
from toolchain.pipeline.described import RANKS, Described
from toolchain.plan.releases import release
from toolchain.plan.runs import Runner, runners

_BUILD_KEYS = (
    *("max_batch_size", "max_input_len", "max_seq_len", "max_num_tokens", "max_beam_width"),
    *("kv_cache_type", "max_draft_len", "speculative_decoding_mode", "weight_streaming", "use_strip_plan"),
)
_PLUGIN_KEYS = (
    *("gemm_plugin", "gpt_attention_plugin", "context_fmha", "use_paged_context_fmha", "tokens_per_block"),
    *("lora_plugin", "use_fp8_context_fmha", "multiple_profiles"),
)


def is_rank_checkpoint(directory: Path) -> bool:
    """Whether a directory holds TensorRT-LLM's config.json of rank files; some of those may be missing."""
    values = _config(directory)
    return "architecture" in values and "dtype" in values


def _config(directory: Path) -> dict[str, Any]:
    try:
        return read_json_object(directory / "config.json")
    except ModelError:
        return {}


def describe_ranks(directory: Path, *, target: str | None = None, weights: bool = False) -> Described:
    """A rank checkpoint, checked.

    Args:
        directory: with `config.json` and the rank files.
        target: the version of TensorRT-LLM that will build the engine.
        weights: read every weight, for NaN.
    """
    found = Described(RANKS, directory)
    found.findings = check_checkpoint(directory, target=target, weights=weights)
    try:
        config = load_rank_config(directory)
    except ModelError:
        return found  # a finding tells why
    found.facts = _model_facts(config)
    for rank in range(config.mapping.files):
        try:
            file = RankFile(config, rank)
        except ModelError:
            continue
        names = file.checkpoint.names
        found.parts.append(
            {
                "rank": rank,
                "stage": file.stage,
                "first layer": file.layers.start,
                "layers": len(file.layers),
                "tensors": len(names),
                "bytes": sum(file.checkpoint.location(name).nbytes for name in names),
            }
        )
    own = [*config.mixed.values()] or [config.quantization]
    schemes = {(one.get("quant_algo") or None, one.get("group_size")) for one in own}
    found.runners = runners(schemes, config.kv_cache_quant_algo, flavours=("tensorrt",))
    return found


def describe_engines(directory: Path, *, target: str | None = None) -> Described:
    """A directory of engines.

    Args:
        directory: with `config.json` and the rank engines.
        target: the version of TensorRT-LLM that is to run them.

    Raises:
        UsageError: config.json has no version and mapping of trtllm-build.
    """
    values = read_json_object(directory / "config.json")
    found = Described("TensorRT-LLM engines", directory)
    tied = read_engine(directory)
    version, world = tied.tensorrt_llm, tied.world_size
    found.facts["tensorrt_llm"] = version
    pretrained, build = (_object(values, name) for name in ("pretrained_config", "build_config"))
    try:
        found.facts |= _model_facts(parse_rank_config(pretrained, directory))
    except ModelError as error:
        found.findings.append(
            Finding(
                error.what, error.where or "", error.why or "", "build it again if it was edited", WARNING
            )
        )
        found.facts |= {"architecture": pretrained.get("architecture"), "world_size": world}
    found.facts |= {name: build[name] for name in _BUILD_KEYS if build.get(name) not in (None, False)}
    plugins = _object(build, "plugin_config")
    found.facts |= {name: plugins[name] for name in _PLUGIN_KEYS if plugins.get(name) not in (None, False)}
    stamped = {"tensorrt": tied.tensorrt, "gpu": tied.gpu, "sm": tied.sm}
    found.facts |= {name: value for name, value in stamped.items() if value is not None}
    for rank in range(world):
        engine = directory / f"rank{rank}.engine"
        if engine.is_file():
            found.parts.append({"rank": rank, "bytes": engine.stat().st_size})
    found.findings += _engine_findings(directory, version, world, target)
    known = release(version)
    if known is not None:
        if known.tensorrt is not None:
            found.facts.setdefault("tensorrt", known.tensorrt)
        gpu = found.facts.get("gpu")
        found.runners = [Runner("tensorrt", known.image or "", known.version, (str(gpu),) if gpu else ())]
    return found


def _engine_findings(directory: Path, version: str, world: int, target: str | None) -> Iterator[Finding]:
    for rank in range(world):
        file = directory / f"rank{rank}.engine"
        if not file.is_file() or not file.stat().st_size:
            yield Finding(
                "the engine is empty" if file.is_file() else "the engine is missing",
                str(file),
                f"config.json tells of {world} ranks, and each needs its own",
                "build again, or copy it too",
            )
    for file in sorted(directory.glob("rank*.engine")):
        number = file.stem.removeprefix("rank")
        if number.isdigit() and int(number) >= world:
            yield Finding(
                "no rank loads this engine",
                str(file),
                f"config.json tells of {world} ranks; it may be of another build",
                "remove it",
                WARNING,
            )
    known = release(version)
    where = f"{directory / 'config.json'}: version"
    if known is None:
        yield Finding(
            f"{version} is no release of TensorRT-LLM that is known",
            where,
            "an engine runs only on the very version that built it, so no container can be named",
            "`llmbuild compat --releases` lists those that are known",
            WARNING,
        )
    elif not known.triton:
        yield Finding(
            f"no Triton container has TensorRT-LLM {version}",
            where,
            "an engine runs only on the version that built it",
            "build it again with a version that a container has: `llmbuild compat --releases`",
            WARNING,
        )
    if target is not None and release(target) != known:
        yield Finding(
            f"it is {version}, and {target} is to run it",
            where,
            "an engine runs only on the version that built it",
            f"run it in {known.image}" if known and known.image else f"build it again with {target}",
        )


def _model_facts(config: RankConfig) -> dict[str, Any]:
    spec, mapping = config.spec, config.mapping
    facts: dict[str, Any] = {
        "architecture": spec.architecture,
        "dtype": spec.dtype,
        "quant_algo": config.quant_algo,
        "kv_cache_quant_algo": config.kv_cache_quant_algo,
        "group_size": config.quantization.get("group_size") if config.quant_algo else None,
        "tensor_parallel": mapping.tp,
        "pipeline_parallel": mapping.pp,
        "world_size": mapping.tp * mapping.pp * mapping.cp,
        "layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "heads": spec.num_attention_heads,
        "kv_heads": spec.num_key_value_heads,
        "vocab_size": spec.vocab_size,
    }
    if spec.moe is not None:
        facts |= {"experts": spec.moe.num_experts, "expert_parallel": mapping.moe_ep}
    producer = config.values.get("producer")
    if isinstance(producer, dict):
        facts["producer"] = " ".join(str(value) for value in producer.values())
    return {name: value for name, value in facts.items() if value is not None}


def _object(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    return value if isinstance(value, dict) else {}
