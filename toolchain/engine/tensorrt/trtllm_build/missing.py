"""What a machine lacks to build engines, before any work, and the ways to go on."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from toolchain.engine.tensorrt.gpus import Gpu, architecture, installed_gpus, known_sm
from toolchain.engine.tensorrt.trtllm_build.containers import unusable
from toolchain.errors import ToolchainError

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

_EXECUTOR = "engine.build.executor"


def missing_for_engine(recipe: Recipe, version: str, image: str | None) -> list[ToolchainError]:
    """What is not here that `engine.build.executor` needs; empty when nothing.

    Args:
        recipe: for the tensorrt flavour.
        version: of TensorRT-LLM.
        image: the container that the recipe comes to; None if none is known.
    """
    executor = recipe.engine.build.executor
    if executor == "slurm":
        return _no_gpu_named(recipe)
    if executor == "kubernetes":
        return [*_no_image(version, image), *_no_gpu_named(recipe)]
    if executor == "local":
        tool = _no_trtllm_build(version)
    else:
        tool = [*_no_image(version, image), *_no_container_engine(executor)]
    gpus = installed_gpus()
    if not gpus:
        lacks = [*(error.what for error in tool), "there is no NVIDIA GPU"]
        return [
            ToolchainError(
                f"engines cannot be built here: {', '.join(lacks)}",
                where=_EXECUTOR,
                why=f"trtllm-build of TensorRT-LLM {version} times its kernels on the GPU that will serve",
                fix="build on a machine with that GPU, in NVIDIA's container or with --set "
                "engine.build.executor=docker or podman; or let a cluster build: slurm or kubernetes; or "
                "stop at the rank files: --until convert; or take the CPU: --set engine.flavour=openvino",
            )
        ]
    return [*tool, *_other_gpu(recipe, gpus)]


def _no_trtllm_build(version: str) -> list[ToolchainError]:
    if shutil.which("trtllm-build"):
        return []
    return [
        ToolchainError(
            "there is no trtllm-build on PATH",
            where=_EXECUTOR,
            why=f"the tensorrt flavour compiles its engines with it, of TensorRT-LLM {version}",
            fix="run llmbuild in NVIDIA's container of that version, or let llmbuild start the container: "
            "--set engine.build.executor=docker, or podman",
        )
    ]


def _no_image(version: str, image: str | None) -> list[ToolchainError]:
    if image is not None:
        return []
    return [
        ToolchainError(
            f"no container with TensorRT-LLM {version} is known",
            where=_EXECUTOR,
            fix="name one as engine.build.image, or take a version of `llmbuild compat --releases`",
        )
    ]


def _no_container_engine(name: str) -> list[ToolchainError]:
    why = unusable(name)
    if why is None:
        return []
    return [
        ToolchainError(
            f"{name} cannot be used here",
            where=_EXECUTOR,
            why=why,
            fix="install and start it, join its group, or choose another executor "
            "(`llmbuild explain engine.build.executor`)",
        )
    ]


def _no_gpu_named(recipe: Recipe) -> list[ToolchainError]:
    if known_sm(recipe.engine.gpu) is not None:
        return []
    return [
        ToolchainError(
            f"executor {recipe.engine.build.executor} needs engine.gpu",
            where="engine.gpu",
            why="an engine is for one GPU architecture, and that of the nodes is not known here",
            fix="name the GPU of the nodes, as --set engine.gpu=h100",
        )
    ]


def _other_gpu(recipe: Recipe, gpus: list[Gpu]) -> list[ToolchainError]:
    """Why engines for `engine.gpu` cannot be built on these GPUs; empty when they can."""
    wanted = known_sm(recipe.engine.gpu)
    if wanted is None:
        if len({gpu.sm for gpu in gpus}) == 1:
            return []
        what = "the GPUs of this machine are of several architectures"
        fix = "name the one to build for as engine.gpu, and choose it with CUDA_VISIBLE_DEVICES"
    else:
        has_one = any(gpu.sm == wanted for gpu in gpus)
        if all(gpu.sm == wanted for gpu in gpus) or (has_one and "CUDA_VISIBLE_DEVICES" in os.environ):
            return []
        what = f"engine.gpu is {recipe.engine.gpu} ({architecture(wanted)}), and here are others"
        fix = (
            "choose the GPUs to build on with CUDA_VISIBLE_DEVICES"
            if has_one
            else "set engine.gpu to the GPU that is here, or build on a machine with the one that it names"
        )
    here = sorted({f"{gpu.name} ({architecture(gpu.sm)})" for gpu in gpus})
    why = f"here: {', '.join(here)}; an engine runs only on the GPU architecture that built it"
    return [ToolchainError(what, where="engine.gpu", why=why, fix=fix)]
