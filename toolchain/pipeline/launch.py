"""`render_launch`: the files that start a server on an artifact, for one kind of place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.launch.kubernetes import kubernetes
from deploy.launch.local import local, mpirun
from deploy.launch.plan import Launch
from deploy.launch.slurm import slurm
from deploy.repositories.common import ENGINE_MODEL
from deploy.repositories.tensorrt import DRAFT_MODEL
from deploy.repositories.vllm import MODEL_JSON
from toolchain.data import load_table
from toolchain.engine.tensorrt.compatible import require_loads_in
from toolchain.engine.tensorrt.stamp import is_engine_dir
from toolchain.errors import UsageError, file_error
from toolchain.pipeline.artifact import Artifact
from toolchain.plan.releases import release
from toolchain.plan.serving import runtime_version
from toolchain.recipe import load_recipe

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

TARGETS: dict[str, Callable[[Launch], dict[str, str]]] = {
    "local": local,
    "mpirun": mpirun,
    "slurm": slurm,
    "kubernetes": kubernetes,
}


def render_launch(
    path: Path,
    target: str,
    *,
    image: str | None = None,
    claim: str | None = None,
    **options: Any,
) -> dict[str, str]:
    """What starts a server on the artifact at `path`: file names and their text.

    Args:
        path: an artifact that was built to the end.
        target: local, mpirun, slurm or kubernetes.
        image: another container than the one of the recipe's version.
        claim: kubernetes: the PersistentVolumeClaim of the model repository.
        options: fields of `Launch`: gpus_per_node, host, ports, drain_s.

    Raises:
        ToolchainError: the engines would not load in `image`.
        UsageError: there is no such target, it is no artifact or an incomplete one, or the target cannot
            serve it.
    """
    if target not in TARGETS:
        raise UsageError(f"there is no target {target!r}", where="--target", fix=f"use {', '.join(TARGETS)}")
    artifact = Artifact.open(path)
    launch = replace(launch_of(artifact), **options)
    if image is not None:
        if "engine" in artifact.manifest.stages and is_engine_dir(artifact.dir("engine")):
            require_loads_in(artifact.dir("engine"), image)
        launch = replace(launch, image=image)
    if target == "kubernetes":
        return kubernetes(launch, claim=claim)
    if claim is not None:
        raise UsageError("a claim is for kubernetes", where="--claim", fix="leave it out")
    return TARGETS[target](launch)


def write_files(files: dict[str, str], out: Path) -> None:
    """Write `files` into the directory `out`; scripts can be executed. Raises UsageError if it cannot."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (out / name).write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                (out / name).chmod(0o755)
    except OSError as error:
        raise file_error(error, "write the launch files") from None


def launch_of(artifact: Artifact) -> Launch:
    """The facts of an artifact that its launch depends on."""
    repository = artifact.dir("repository")
    recipe = load_recipe(artifact.recipe)
    files = artifact.manifest.files
    return Launch(
        name=artifact.manifest.name,
        artifact=artifact.path,
        repository=artifact.path / "repository",  # not the store's: a rebuild replaces that
        repository_bytes=sum(f.size for name, f in files.items() if name.startswith("repository/")),
        vllm_arguments=_vllm_arguments(recipe, repository),
        **recipe_facts(recipe),
    )


def recipe_facts(recipe: Recipe) -> dict[str, Any]:
    """What a launch depends on of the recipe: fields of `Launch`."""
    section = recipe.deploy.tensorrt_llm
    facts: dict[str, Any] = {
        "flavour": recipe.engine.flavour,
        "image": _image(recipe),
        "ranks": recipe.parallelism.world_size,
        "paths": _paths(recipe),
    }
    if section is not None:
        models = (ENGINE_MODEL,) if section.draft is None else (ENGINE_MODEL, DRAFT_MODEL)
        facts |= {
            "instances": len(section.gpu_device_ids or [()]),
            "orchestrator": section.mode == "orchestrator",
            "participants": len(section.participant_ids or ()),
            "engine_models": models,
        }
    return facts


def _image(recipe: Recipe) -> str | None:
    """NVIDIA's newest Triton container of the runtime's version; None where there is none."""
    version = runtime_version(recipe) if recipe.engine.flavour != "openvino" else None
    if version is None:
        return None
    if recipe.engine.flavour == "vllm":
        table = load_table("vllm_releases")
        tags = [tag for tag, known in table["tags"].items() if known == version]
        return table["image"].format(tag=tags[-1]) if tags else None
    known = release(version)
    return known.triton_image if known else None


def _vllm_arguments(recipe: Recipe, repository: Path) -> dict[str, Any]:
    if recipe.engine.flavour != "vllm":
        return {}
    arguments: dict[str, Any] = json.loads((repository / MODEL_JSON).read_text(encoding="utf-8"))
    return arguments


def _paths(recipe: Recipe) -> tuple[str, ...]:
    """Absolute paths outside the repository that the recipe has the server read."""
    section = recipe.deploy.tensorrt_llm
    named = [recipe.deploy.checkpoint]
    if section is not None:
        named += [section.gpt_model_path, section.encoder_model_path, section.lora_prefetch_dir]
        named += [section.xgrammar_tokenizer_info_path]
        named += [section.draft.gpt_model_path] if section.draft is not None else []
    return tuple(dict.fromkeys(path for path in named if path is not None and path.startswith("/")))
