"""Which version of the runtime takes what a recipe asks of its server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.plan.releases import default_version

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

_TABLES = {"pytorch": ("llm_api_args", "TensorRT-LLM"), "vllm": ("vllm_args", "vLLM")}
_WHERE = "deploy.engine_args"


def runtime_version(recipe: Recipe) -> str:
    """The version of the runtime that serves the recipe: `engine.version`, or the newest container's."""
    if recipe.engine.version is not None:
        return recipe.engine.version
    if recipe.engine.flavour == "vllm":
        return str(list(load_table("vllm_releases")["tags"].values())[-1])
    return default_version(recipe.engine.flavour)


def serving_problems(recipe: Recipe) -> list[PlanError]:
    """Why the runtime of the recipe's version cannot serve as `deploy` says; empty when it can."""
    flavour = recipe.engine.flavour
    if flavour == "tensorrt":
        return _parameter_problems(recipe)
    if flavour in _TABLES:
        table, runtime = _TABLES[flavour]
        name = f"{runtime} {runtime_version(recipe)}"
        version = Version(runtime_version(recipe))
        return list(_argument_problems(recipe.deploy.engine_args, load_table(table), (), name, version))
    return []


def _parameter_problems(recipe: Recipe) -> list[PlanError]:
    section = recipe.deploy.tensorrt_llm
    if section is None:
        return []
    version = runtime_version(recipe)
    return [
        PlanError(
            f"Triton's backend of TensorRT-LLM {version} has no parameter {name}",
            where=f"deploy.tensorrt_llm.{name}",
            why=f"it came with {facts['first']}",
            fix=f"remove it, or set engine.version to {facts['first']}.0 or newer",
        )
        for name, facts in load_table("triton_parameters").items()
        if getattr(section, name) is not None and Version(version) < Version(facts["first"])
    ]


def _argument_problems(
    given: Mapping[str, Any], table: Mapping[str, Any], path: tuple[str, ...], runtime: str, version: Version
) -> Iterator[PlanError]:
    """Arguments that the runtime would refuse, or that a field of the recipe sets."""
    for name, value in given.items():
        where, row = ".".join((_WHERE, *path, name)), table.get(name)
        if row is None:
            near = get_close_matches(name, table, 1)
            yield PlanError(
                f"{runtime} is not known to have an argument {'.'.join((*path, name))}",
                where=where,
                why="it refuses to start with one that it does not know",
                fix=f"write `{near[0]}`" if near else "remove it",
            )
        elif "recipe" in row:
            yield PlanError(
                f"{'.'.join((*path, name))} has a field of its own in a recipe",
                where=where,
                fix=f"remove it, and set {row['recipe']}",
            )
        elif row.get("engine_only"):
            yield PlanError(
                f"{name} belongs to compiled engines; the PyTorch back end refuses it",
                where=where,
                fix="remove it: quantization is in the checkpoint, and nothing is built",
            )
        elif version < Version(row.get("first", "0")) or version >= Version(row.get("before", "9999")):
            bound = f"since {row['first']}" if "first" in row else f"before {row['before']}"
            yield PlanError(
                f"{runtime} has no argument {'.'.join((*path, name))}",
                where=where,
                why=f"versions {bound} have it",
                fix="remove it, or choose another engine.version",
            )
        elif "keys" in row:
            if isinstance(value, Mapping):
                yield from _argument_problems(value, row["keys"], (*path, name), runtime, version)
            elif value is not None:
                yield PlanError(f"{name} is no mapping", where=where, fix="write its keys below it")
