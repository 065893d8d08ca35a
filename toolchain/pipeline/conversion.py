"""The convert stage: from the quantized checkpoint to a file a rank, for the tensorrt flavour."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.model.spec import load_spec
from toolchain.pipeline.quantization import quantize_config
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
        BuildError: an engine cannot hold what it is, or what the recipe makes of it.
    """
    if recipe.engine.flavour != "tensorrt":
        return []
    layout = rank_layout(recipe)
    # An FP8 cache with scales of 1 is the recipe's alone: no checkpoint says so.
    kv_cache = "FP8" if recipe.quantization.kv_cache == "fp8" else None
    _check(recipe, model, layout, kv_cache)
    return [
        Stage(
            name="convert",
            version=1,
            run=_convert,
            inputs=("quantize",),
            config={"layout": layout.to_json(), "kv_cache": kv_cache},
            tools=versions("torch"),
        )
    ]


def _check(recipe: Recipe, model: Path, layout: RankLayout, kv_cache: str | None) -> None:
    """Find out before hours of quantization what would be refused after them."""
    from quantize.run import planned_scheme
    from toolchain.engine.tensorrt.convert.scheme import engine_scheme, with_kv_cache

    spec = load_spec(model)
    layout.check(spec)
    scheme = planned_scheme(model, quantize_config(recipe.quantization, recipe.engine.flavour))
    if scheme is not None:
        engine_scheme(spec, with_kv_cache(scheme, kv_cache), layout)


def _convert(context: StageContext) -> None:
    from toolchain.engine.tensorrt.checklist import require_sound

    context.facts.update(
        convert(
            context.inputs["quantize"],
            context.out_dir,
            context.work_dir,
            layout=RankLayout(**context.config["layout"]),
            progress=context.progress,
            kv_cache=context.config["kv_cache"],
        )
    )
    require_sound(context.out_dir)  # what TensorRT-LLM would refuse, before an engine is built from it
