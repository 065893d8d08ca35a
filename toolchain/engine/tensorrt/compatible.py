"""Whether engines load where they are going: answered from two small files, before anything is started.

TensorRT refuses an engine of another TensorRT, another TensorRT-LLM or another GPU architecture only after it
has read it, and a run over another number of ranks fails an assertion; each says little of how to mend it.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from toolchain.engine.tensorrt.gpus import architecture, installed_gpus, known_sm
from toolchain.engine.tensorrt.stamp import EngineFacts, read_engine
from toolchain.errors import ToolchainError, UsageError, combined
from toolchain.plan.releases import Release, container_release, release


@dataclass(frozen=True)
class Target:
    """Where engines are to run; None for what is not known, and so not judged.

    Args:
        tensorrt_llm: its TensorRT-LLM.
        tensorrt: its TensorRT.
        sm: compute capability x 10 of its GPUs.
        gpu: their name, for messages.
        world_size: ranks that will be started.
    """

    tensorrt_llm: str | None = None
    tensorrt: str | None = None
    sm: int | None = None
    gpu: str | None = None
    world_size: int | None = None


def target(
    *,
    version: str | None = None,
    container: str | None = None,
    gpu: str | None = None,
    world_size: int | None = None,
) -> Target:
    """A target in a user's words.

    Args:
        version: of TensorRT-LLM.
        container: of Triton, as 26.07 or the image with its tag. Not with `version`.
        gpu: a row of `data/gpus.yaml`.
        world_size: ranks that will be started.

    Raises:
        UsageError: the container or the GPU is not known, or both version and container are given.
    """
    if version is not None and container is not None:
        raise UsageError("a version and a container are two ways to say one thing", fix="give one of them")
    known: Release | None = None
    if container is not None:
        known = container_release(container)
    elif version is not None:
        known = release(version) or Release(version)
    sm = known_sm(gpu)
    if gpu is not None and sm is None:
        raise UsageError(
            f"nothing is known of a GPU {gpu!r}", fix="`llmbuild compat` names them: h100, l40s, ..."
        )
    if known is None:
        return Target(sm=sm, gpu=gpu, world_size=world_size)
    return Target(known.version, known.tensorrt, sm, gpu, world_size)


def here() -> Target:
    """This machine, as far as can be told: its TensorRT-LLM, and its GPUs if they are of one kind."""
    found = Target()
    with contextlib.suppress(metadata.PackageNotFoundError):
        version = metadata.version("tensorrt-llm")
        known = release(version) or Release(version)
        found = replace(found, tensorrt_llm=known.version, tensorrt=known.tensorrt)
    gpus = installed_gpus()
    if len({gpu.sm for gpu in gpus}) == 1:
        found = replace(found, sm=gpus[0].sm, gpu=gpus[0].name)
    return found


def require_loads(directory: Path, where: Target) -> EngineFacts:
    """The facts of the engines in `directory`, if they load there.

    Raises:
        ToolchainError: they do not; it tells of every reason, and what mends each.
        UsageError, ModelError: there are no engines in `directory`.
    """
    facts = read_engine(directory)
    problems = loading_problems(facts, where, directory)
    if problems:
        raise combined(problems)
    return facts


def require_loads_in(directory: Path, image: str) -> None:
    """Make sure that a container runs the engines in `directory`, if it is one of Triton's that is known.

    Raises:
        ToolchainError: its TensorRT-LLM is another one.
    """
    try:
        known = container_release(image)
    except UsageError:  # an image of somebody's own
        return
    require_loads(directory, Target(known.version, known.tensorrt))


def loading_problems(engine: EngineFacts, where: Target, directory: Path) -> list[ToolchainError]:
    """Why the engines will not load there; empty when they will, as far as is known.

    Args:
        engine: what the engines are tied to.
        where: what is there.
        directory: of the engines, for messages.
    """
    problems = []

    def refuse(what: str, why: str, fix: str) -> None:
        problems.append(ToolchainError(what, where=str(directory), why=why, fix=fix))

    if where.tensorrt_llm not in (None, engine.tensorrt_llm):
        refuse(
            f"the engines are of TensorRT-LLM {engine.tensorrt_llm}, and {where.tensorrt_llm} is to run them",
            "an engine runs only on the version that built it: its plugins are that version's",
            f"{_serve_with(engine)}or build again with engine.version {where.tensorrt_llm}",
        )
    elif None not in (where.tensorrt, engine.tensorrt) and where.tensorrt != engine.tensorrt:
        refuse(
            f"the engines are of TensorRT {engine.tensorrt}, and {where.tensorrt} is to run them",
            "TensorRT reads the engines of its own version alone",
            f"{_serve_with(engine)}or build again where they will run",
        )
    if None not in (where.sm, engine.sm) and where.sm != engine.sm:
        assert where.sm is not None
        assert engine.sm is not None
        there = f"{where.gpu} ({architecture(where.sm)})" if where.gpu else architecture(where.sm)
        refuse(
            f"the engines are for {architecture(engine.sm)}{_built_on(engine)}, and {there} is to run them",
            "kernels are compiled for one architecture",
            f"build again with engine.gpu {_name(where)}, which takes the stored checkpoint and builds the "
            "engine alone",
        )
    if where.world_size not in (None, engine.world_size):
        refuse(
            f"the engines are {engine.world_size} ranks ({engine.tensor} tensor x {engine.pipeline} "
            f"pipeline), and {where.world_size} are to be started",
            "each rank is a process with a GPU of its own, and all of them must be there",
            f"start {engine.world_size} ranks; or build again with parallelism.tensor x pipeline = "
            f"{where.world_size}",
        )
    return problems


def _serve_with(engine: EngineFacts) -> str:
    known = release(engine.tensorrt_llm)
    image = known.triton_image if known else None
    return f"serve with {image}; " if image else ""


def _name(where: Target) -> str:
    """The target's GPU as a recipe names it."""
    return where.gpu if where.gpu and known_sm(where.gpu) else "set to the GPU that is there"


def _built_on(engine: EngineFacts) -> str:
    return f" (built on {engine.gpu})" if engine.gpu else ""
