"""The command line of `trtllm-build`, from values alone.

Every flag that decides the engine is written out where trtllm-build's default changed between versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.plan.build_flags import Flag, asked_flags, build_flags

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

TIMING_CACHE = "model.cache"
"""The timing cache that a build leaves beside the engines, and that another may start from."""

_CIRCUMSTANCES = frozenset({"workers", "input_timing_cache", "lora_dir"})
"""Flags that say how or from which files, and so have no place among the values of a stage's key."""


def engine_flags(recipe: Recipe) -> dict[str, Any]:
    """The flags that decide what trtllm-build makes of a checkpoint, files apart."""
    engine, build = recipe.engine, recipe.engine.build
    flags: dict[str, Any] = {
        "max_batch_size": engine.max_batch_size,
        "max_num_tokens": engine.max_num_tokens,
        "kv_cache_type": "paged" if engine.kv_cache.paged else "continuous",
        "gemm_plugin": "nvfp4" if recipe.quantization.method == "nvfp4" else "auto",
        "use_paged_context_fmha": engine.kv_cache.paged,
    }
    if engine.max_seq_len is not None:
        flags["max_seq_len"] = engine.max_seq_len
    asked = asked_flags(build.model_dump())
    return flags | {name: value for name, value in asked.items() if name not in _CIRCUMSTANCES}


def build_command(
    checkpoint: Path,
    out_dir: Path,
    flags: Mapping[str, Any],
    *,
    workers: int,
    input_timing_cache: Path | None = None,
    lora_dirs: Sequence[Path] = (),
) -> list[str]:
    """The command that builds the engines of all ranks, its flags in the order of the table.

    Args:
        checkpoint: a directory of rank files.
        out_dir: where the engines go, and their timing cache.
        flags: as `engine_flags` gives them.
        workers: ranks to build at the same time.
        input_timing_cache, lora_dirs: files that the engines depend on.
    """
    values: dict[str, Any] = {
        **flags,
        "checkpoint_dir": checkpoint,
        "output_dir": out_dir,
        "output_timing_cache": out_dir / TIMING_CACHE,
        "workers": workers,
        "log_level": "info",
    }
    if input_timing_cache is not None:
        values["input_timing_cache"] = input_timing_cache
    if lora_dirs:
        values["lora_dir"] = lora_dirs
    command = ["trtllm-build"]
    for name, flag in build_flags().items():
        if name in values:
            command += _arguments(flag, values.pop(name))
    assert not values, f"no flags of trtllm-build: {', '.join(values)}"
    return command


def _arguments(flag: Flag, value: Any) -> list[str]:
    option = f"--{flag.name}"
    if flag.kind == "flag":
        return [option] if value else []
    if flag.kind == "switch":
        return [option, "enable" if value else "disable"]
    if flag.kind in ("paths", "words"):
        return [option, *map(str, value)]
    return [option, str(value)]
