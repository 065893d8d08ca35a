"""`build_recipe`: from a recipe to an artifact directory."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.engine import flavour
from toolchain.errors import UsageError, combined, file_error
from toolchain.pipeline.artifact import publish, require_replaceable
from toolchain.pipeline.gates import has_gate, has_smoke, passed_gates
from toolchain.pipeline.report import report_of
from toolchain.pipeline.runner import StageResult, run_pipeline
from toolchain.pipeline.stages import STAGES, build_stages
from toolchain.pipeline.store import Store
from toolchain.pipeline.texts import find_texts
from toolchain.pipeline.tools import missing_tools
from toolchain.plan.facts import fetch_model
from toolchain.plan.plan import make_plan
from toolchain.progress import Progress, Silent
from toolchain.recipe import dump_recipe

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.text.files import TextFiles


@dataclass(frozen=True)
class Built:
    """A finished build: where the artifact is and how each stage came out."""

    artifact: Path
    results: list[StageResult]

    @property
    def complete(self) -> bool:
        """Whether every stage was built, so that the artifact can be served."""
        return any(result.stage.name == "repository" for result in self.results)

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

    What the recipe leaves `auto` is built as the plan decides; the artifact's recipe says how.
    Everything that can be known beforehand is checked first: stage names, the plan, the tools, the
    calibration and held-out texts, the place of the artifact. A build that stops early (`until`) leaves an
    artifact of the stages it has.

    Raises:
        UsageError: there is no such stage, a text that it needs cannot be read, or `out` not be written.
        DataError: a data set of the Hub does not exist as the recipe names it.
        PlanError: the recipe cannot work on its device.
        ToolchainError: tools are missing that the stages up to `until` need.
        GateError: the quantized model does not pass; what was built before stays in the store.
        LlmbuildError: whatever a stage meets.
    """
    for name in filter(None, [until, *force]):
        if name not in STAGES:
            raise UsageError(f"there is no stage {name}", fix=f"the stages are {', '.join(STAGES)}")
        if (name == "gate" and not has_gate(recipe)) or (name == "smoke" and not has_smoke(recipe)):
            gate = "perplexity" if name == "gate" else "smoke"
            raise UsageError(
                f"the recipe has no gate that needs a stage {name}",
                fix=f"add gates.{gate} to the recipe (`llmbuild explain gates.{gate}`)",
            )
    plan = make_plan(recipe)
    plan.check()
    recipe, progress = plan.resolved, progress or Silent()
    if plan.choices:
        best = plan.choices[0]
        progress.note(f"auto: {best.method}, tensor {best.tensor} x pipeline {best.pipeline} ({best.reason})")
    missing = missing_tools(recipe, until)
    if missing:
        raise combined(missing)

    _require_files(recipe, until)
    texts = _find_texts(recipe, until)
    _require_writable(out)
    require_replaceable(out / recipe.name)
    model, revision = fetch_model(recipe.model.source, recipe.model.revision)
    with store or Store.open() as opened:
        stages = build_stages(recipe, model, revision, texts)
        results = run_pipeline(stages, opened, until=until, force=force, progress=progress)
        gates = passed_gates(recipe, {result.stage.name: result.path for result in results})
        publish(
            out / recipe.name,
            results,
            opened,
            recipe=dump_recipe(recipe),
            report=report_of(recipe, results),
            gates=gates,
        )
    return Built(out / recipe.name, results)


def _find_texts(recipe: Recipe, until: str | None) -> dict[str, TextFiles]:
    """The data sets that the stages up to `until` want."""
    last = STAGES.index(until or STAGES[-1])
    return find_texts(
        recipe, calibration=last >= STAGES.index("quantize"), gates=last >= STAGES.index("gate")
    )


def _require_files(recipe: Recipe, until: str | None) -> None:
    """Make sure of the files that the engine will want; it comes late."""
    if STAGES.index(until or STAGES[-1]) < STAGES.index("engine"):
        return
    for name, path in flavour(recipe.engine.flavour).inputs(recipe).files.items():
        if not path.exists():
            raise UsageError(
                f"there is no such file or directory for the engine: {name}",
                where=str(path),
                fix="check the paths under engine.build",
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
