"""The convert stage: from the quantized checkpoint to a file a rank, for the tensorrt flavour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.model.spec import load_spec
from toolchain.pipeline.stage import Stage, StageContext, versions

if TYPE_CHECKING:
    from toolchain.recipe import Recipe


def rank_layout(recipe: Recipe) -> RankLayout:
    """How the recipe, without `auto`, wants the model cut."""
    return RankLayout(**recipe.parallelism.model_dump(exclude={"gpus"}))


def convert_stages(recipe: Recipe, model: Path) -> list[Stage]:
    """The stage, if the recipe's flavour has one.

    Raises:
        PlanError: the model in `model` cannot be cut as the recipe says.
    """
    if recipe.engine.flavour != "tensorrt":
        return []
    layout = rank_layout(recipe)
    layout.check(load_spec(model))
    return [
        Stage(
            name="convert",
            version=1,
            run=_convert,
            inputs=("quantize",),
            config=layout.to_json(),
            tools=versions("torch"),
        )
    ]


def _convert(context: StageContext) -> None:
    context.facts.update(
        convert(
            context.inputs["quantize"],
            context.out_dir,
            context.work_dir,
            layout=RankLayout(**context.config),
            progress=context.progress,
        )
    )
