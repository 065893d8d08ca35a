"""Whether a finished engine directory is what was ordered: ranks, version, split and limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolchain.engine.tensorrt.stamp import read_engine
from toolchain.errors import BuildError, LlmbuildError
from toolchain.model.config_json import read_json_object

# Of build_config, those flags whose value trtllm-build takes over as it is.
_LIMITS = (
    "max_batch_size",
    "max_seq_len",
    "max_num_tokens",
    "max_beam_width",
    "opt_num_tokens",
    "max_prompt_embedding_table_size",
    "max_draft_len",
    "gather_context_logits",
    "kv_cache_type",
)
_PLUGINS = ("tokens_per_block", "use_paged_context_fmha", "context_fmha", "remove_input_padding")
# Of the checkpoint's config.json, what the engine's must repeat.
_MODEL = ("architecture", "dtype", "num_hidden_layers", "hidden_size", "vocab_size")


def check_engine(
    directory: Path, checkpoint: Path, *, version: str, tensor: int, pipeline: int, flags: Mapping[str, Any]
) -> None:
    """Hold the engines in `directory` against the order.

    Args:
        directory: what trtllm-build wrote.
        checkpoint: the rank files that it read.
        version: the TensorRT-LLM that was ordered.
        tensor, pipeline: the split that was ordered.
        flags: as given to trtllm-build.

    Raises:
        BuildError: it is something else; every difference is named.
    """
    found = list(_differences(directory, checkpoint, version, tensor, pipeline, flags))
    if found:
        raise BuildError(
            f"trtllm-build left something else than was ordered: {found[0]}",
            where=str(directory),
            why="; ".join(["it ended without an error", *found[1:]]),
            fix="build again with --force engine; if it stays so, compare engine.version with the container",
        )


def _differences(
    directory: Path, checkpoint: Path, version: str, tensor: int, pipeline: int, flags: Mapping[str, Any]
) -> Iterator[str]:
    yield from _rank_files(directory, tensor * pipeline)
    try:
        facts = read_engine(directory)
        config = read_json_object(directory / "config.json")
    except LlmbuildError as error:
        yield f"{error.what}: {error.why}" if error.why else error.what
        return
    if facts.tensorrt_llm != version:
        yield f"the engines are of TensorRT-LLM {facts.tensorrt_llm}, not {version}"
    if (facts.tensor, facts.pipeline, facts.world_size) != (tensor, pipeline, tensor * pipeline):
        yield (
            f"they are split {facts.tensor} x {facts.pipeline} over {facts.world_size} ranks, "
            f"not {tensor} x {pipeline}"
        )
    model, source = config["pretrained_config"], read_json_object(checkpoint / "config.json")
    yield from _unequal(model, {name: source.get(name) for name in _MODEL if name in source})
    for name in ("quant_algo", "kv_cache_quant_algo"):
        given = (source.get("quantization") or {}).get(name)
        built = (model.get("quantization") or {}).get(name)
        if given != built:
            yield f"{name} is {built}, not {given}"
    build = config.get("build_config") or {}
    yield from _unequal(build, {name: flags[name] for name in _LIMITS if name in flags})
    plugins = build.get("plugin_config") or {}
    yield from _unequal(plugins, {name: flags[name] for name in _PLUGINS if name in flags})


def _rank_files(directory: Path, world_size: int) -> Iterator[str]:
    wanted = {f"rank{rank}.engine" for rank in range(world_size)}
    there = {path.name: path.stat().st_size for path in directory.glob("rank*.engine")}
    missing = sorted(wanted - there.keys())
    if missing:
        yield f"{', '.join(missing)} missing"
    for name in sorted(wanted & there.keys()):
        if there[name] == 0:
            yield f"{name} is empty"
    if more := sorted(there.keys() - wanted):
        yield f"{', '.join(more)} of no rank"


def _unequal(built: Mapping[str, Any], ordered: Mapping[str, Any]) -> Iterator[str]:
    for name, value in ordered.items():
        if name not in built:
            continue  # this version does not write it
        found = built[name]
        if name == "kv_cache_type":  # written as the name of an enumeration's member
            found = str(found).rpartition(".")[2].lower()
        if found != value:
            yield f"{name} is {found}, not {value}"
