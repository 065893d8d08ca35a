"""Recipes in, artifacts out: everything between a model's weights and a running server.

The Python API, for programs that would rather not run the command:

    from toolchain import build_recipe, load_recipe, make_plan, serve_artifact

    recipe = load_recipe("configs/demo-int4.yaml", ["engine.precision=exact"])
    make_plan(recipe).check()
    built = build_recipe(recipe)
    with serve_artifact(built.artifact) as server:
        print(server.endpoints.grpc)

Names resolve on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.pipeline.build import build_recipe
    from toolchain.pipeline.serve import serve_artifact
    from toolchain.plan.plan import make_plan
    from toolchain.recipe import load_recipe

__all__ = ["build_recipe", "load_recipe", "make_plan", "serve_artifact"]

_HOME = {
    "build_recipe": "toolchain.pipeline.build",
    "load_recipe": "toolchain.recipe.load",
    "make_plan": "toolchain.plan.plan",
    "serve_artifact": "toolchain.pipeline.serve",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
