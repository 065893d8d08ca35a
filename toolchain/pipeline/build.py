"""`build_recipe`: from a recipe to an artifact directory."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.errors import UsageError, combined, file_error
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

    Everything that can be known beforehand is checked first: stage names, the plan, the tools, the
    calibration file, the place of the artifact. A build that stops early (`until`) leaves an artifact of the
    stages it has.

    Raises:
        UsageError: there is no such stage, the calibration file cannot be read, or `out` not be written.
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

    if until != "source":
        _require_calibration_file(recipe)
    _require_writable(out)
    require_replaceable(out / recipe.name)
    progress = progress or Silent()
    model, revision = fetch_model(recipe.model.source, recipe.model.revision)
    with store or Store.open() as opened:
        stages = build_stages(recipe, model, revision)
        results = run_pipeline(stages, opened, until=until, force=force, progress=progress)
        publish(out / recipe.name, results, opened, recipe=dump_recipe(recipe))
    return Built(out / recipe.name, results)


def _require_calibration_file(recipe: Recipe) -> None:
    quant = recipe.quantization
    file = quant.calibration.file if quant.calibration is not None and quant.method != "none" else None
    if file is None or (file.is_file() and os.access(file, os.R_OK)):
        return
    if not file.exists():
        what = "there is no such calibration file"
    elif not file.is_file():
        what = "the calibration data is not a regular file"
    else:
        what = "the calibration file cannot be read: check its permissions"
    raise UsageError(
        what, where=str(file), fix="set quantization.calibration.dataset to file:PATH, a text or .jsonl file"
    )


def _require_writable(out: Path) -> None:
    """Make the directory `out`, and make sure that an artifact can be left in it."""
    fix = "give --out a directory that can be written"
    if out.exists() and not out.is_dir():
        raise UsageError("artifacts cannot be left here: this is not a directory", where=str(out), fix=fix)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(error, "make the directory for artifacts") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError("artifacts cannot be left here: no permission to write", where=str(out), fix=fix)
