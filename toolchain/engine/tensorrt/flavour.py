"""`TensorRT`: rank files, compiled by trtllm-build into engines for one GPU architecture and version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.engine.base import BuildInputs, Config
from toolchain.engine.tensorrt.gpus import architecture, installed_gpus, known_sm, sm_of
from toolchain.engine.tensorrt.trtllm_build.command import engine_flags
from toolchain.engine.tensorrt.trtllm_build.missing import missing_for_engine
from toolchain.errors import ToolchainError
from toolchain.model.config_json import read_json_object
from toolchain.plan.releases import default_version, release
from toolchain.progress import Progress

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

_MOST_GPUS = 8  # of one node of a cluster


class TensorRT:
    """Engines of TensorRT-LLM, for Triton's tensorrtllm backend."""

    name = "tensorrt"
    answers_here = False

    def missing(self, recipe: Recipe) -> list[ToolchainError]:
        """What the chosen executor needs and is not here."""
        return missing_for_engine(recipe, _version(recipe), _image(recipe))

    def tools(self, recipe: Recipe) -> dict[str, str]:
        """The TensorRT-LLM, and the TensorRT that goes with it where that is known."""
        version = _version(recipe)
        known = release(version)
        tools = {"tensorrt-llm": version}
        return tools | ({"tensorrt": known.tensorrt} if known and known.tensorrt else {})

    def engine_config(self, recipe: Recipe) -> Config:
        """The split and every flag that shows in the engines."""
        split = recipe.parallelism
        return {
            "version": _version(recipe),
            "tensor": split.tp_size,
            "pipeline": split.pp_size,
            "flags": engine_flags(recipe),
        }

    def inputs(self, recipe: Recipe) -> BuildInputs:
        """The GPU architecture, timing cache and LoRA weights; and where trtllm-build runs."""
        build = recipe.engine.build
        files = {f"lora{index}": Path(path) for index, path in enumerate(build.lora_dir)}
        if build.input_timing_cache is not None:
            files["input_timing_cache"] = Path(build.input_timing_cache)
        on_cluster = build.executor in ("slurm", "kubernetes")
        ranks = recipe.parallelism.world_size
        return BuildInputs(
            arch=_architecture(recipe),
            files=files,
            host={
                "executor": build.executor,
                "image": None if build.executor == "local" else _image(recipe),
                "workers": build.workers or (min(ranks, _MOST_GPUS) if on_cluster else ranks),
                "timeout_minutes": build.timeout_minutes,
                "volume_claim": build.volume_claim,
            },
        )

    def build(
        self,
        checkpoint: Path,
        out_dir: Path,
        config: Config,
        progress: Progress,
        *,
        work_dir: Path,
        inputs: BuildInputs,
    ) -> dict[str, Any]:
        """Run trtllm-build on rank files; check and stamp what it makes."""
        from toolchain.engine.tensorrt.trtllm_build.run import Host, Order, build_engines

        files, flags = dict(inputs.files), config["flags"]
        if (
            "max_seq_len" not in flags
        ):  # of itself, trtllm-build would stretch it by some kinds of RoPE scaling
            positions = read_json_object(checkpoint / "config.json")["max_position_embeddings"]
            flags = {**flags, "max_seq_len": positions}
        order = Order(
            checkpoint=checkpoint,
            version=config["version"],
            tensor=config["tensor"],
            pipeline=config["pipeline"],
            sm=sm_of(inputs.arch),
            flags=flags,
            input_timing_cache=files.pop("input_timing_cache", None),
            lora_dirs=tuple(files[name] for name in sorted(files, key=lambda name: int(name[4:]))),
        )
        return build_engines(order, Host(**inputs.host), out_dir, work_dir, progress)

    def repository_config(self, recipe: Recipe) -> Config:
        """Limits, scheduling and the backend's parameters."""
        from toolchain.engine.tensorrt.repository import repository_config

        return repository_config(recipe)

    def render(self, engine: Path, checkpoint: Path, out_dir: Path, config: Config) -> dict[str, Any]:
        """Make the repository; the tokenizer is that of the quantized checkpoint."""
        from toolchain.engine.tensorrt.repository import render_repository

        return render_repository(engine, checkpoint, out_dir, config)

    def answer(
        self, repository: Path, prompts: Sequence[Sequence[int]], max_tokens: int, eos: Sequence[int]
    ) -> list[list[int]]:
        """Never reached: `answers_here` says so."""
        raise ToolchainError("the tensorrt engine is run by Triton alone")


def _version(recipe: Recipe) -> str:
    """The TensorRT-LLM that the recipe comes to, as that calls itself."""
    version = recipe.engine.version or default_version("tensorrt")
    known = release(version)
    return known.version if known else version


def _image(recipe: Recipe) -> str | None:
    known = release(_version(recipe))
    return recipe.engine.build.image or (known.image if known else None)


def _architecture(recipe: Recipe) -> str | None:
    """Of the GPU that the recipe names, or else of the one in this machine; None where neither is known."""
    sm = known_sm(recipe.engine.gpu)
    if sm is None and recipe.engine.gpu is None:
        sm = next((gpu.sm for gpu in installed_gpus()), None)
    return None if sm is None else architecture(sm)
