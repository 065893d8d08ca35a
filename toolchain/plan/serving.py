"""Which version of the runtime takes what a recipe asks of its server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.version import Version

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.plan.releases import default_version

if TYPE_CHECKING:
    from toolchain.recipe import Recipe


def serving_problems(recipe: Recipe) -> list[PlanError]:
    """Why the runtime of the recipe's version cannot serve as `deploy` says; empty when it can."""
    if recipe.engine.flavour == "tensorrt":
        return _parameter_problems(recipe)
    return []


def _parameter_problems(recipe: Recipe) -> list[PlanError]:
    section = recipe.deploy.tensorrt_llm
    if section is None:
        return []
    version = recipe.engine.version or default_version("tensorrt")
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
