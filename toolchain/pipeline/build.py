"""`build_recipe`: from a recipe to an artifact directory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.errors import UsageError, combined
from toolchain.pipeline.artifact import publish, require_replaceable
from toolchain.pipeline.runner import StageResult, run_pipeline
from toolchain.pipeline.stages import STAGES, build_stages
from toolchain.pipeline.store import Store
from toolchain.pipeline.tools import missing_tools
from toolchain.plan.facts import fetch_model
from toolchain.plan.plan import make_plan
from toolchain.progress import Progress, Silent
from toolchain.recipe import dump_recipe

if TYPE_CHECKING:
    from toolchain.recipe import Recipe


@dataclass(frozen=True)
class Built:
    """A finished build: where the artifact is and how each stage came out."""

    artifact: Path
    results: list[StageResult]

    @property
    def complete(self) -> bool:
        """Whether every stage was built, so that the artifact can be served."""
        return len(self.results) == len(STAGES)

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {
            "artifact": str(self.artifact),
            "complete": self.complete,
            "stages": [
                {
                    "name": result.stage.name,
                    "outcome": result.outcome,
                    "key": result.record.key,
                    "digest": result.object.digest,
                    "seconds": result.record.seconds,
                    "peak_memory": result.record.peak_memory,
                }
                for result in self.results
            ],
        }


def build_recipe(
    recipe: Recipe,
    *,
    out: Path = Path("artifacts"),
    until: str | None = None,
    force: Collection[str] = (),
    progress: Progress | None = None,
    store: Store | None = None,
) -> Built:
    """Build `recipe` and leave `out`/NAME, which links into the store.

    Everything that can be known beforehand is checked first: stage names, the plan, the tools. A build that
    stops early (`until`) leaves an artifact of the stages it has.

    Raises:
        UsageError: there is no such stage.
        PlanError: the recipe cannot work on its device.
        ToolchainError: tools are missing that the stages up to `until` need.
        LlmbuildError: whatever a stage meets.
    """
    for name in filter(None, [until, *force]):
        if name not in STAGES:
            raise UsageError(f"there is no stage {name}", fix=f"the stages are {', '.join(STAGES)}")
    make_plan(recipe).check()
    missing = missing_tools(recipe, until)
    if missing:
        raise combined(missing)

    require_replaceable(out / recipe.name)
    progress = progress or Silent()
    model, revision = fetch_model(recipe.model.source, recipe.model.revision)
    with store or Store.open() as opened:
        stages = build_stages(recipe, model, revision)
        results = run_pipeline(stages, opened, until=until, force=force, progress=progress)
        publish(out / recipe.name, results, opened, recipe=dump_recipe(recipe))
    return Built(out / recipe.name, results)
