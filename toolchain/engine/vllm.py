"""`Vllm`: vLLM on the quantized checkpoint, behind Triton's vLLM backend.

Nothing is compiled: the engine stage is the arguments of vLLM's engine, so that a build completes on any
machine. What is rendered has not been run with vLLM, which is not on the machines that test this.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.engine.base import BuildInputs, Config
from toolchain.errors import ToolchainError
from toolchain.progress import Progress

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

ARGUMENTS = "vllm.json"


class Vllm:
    """The checkpoint as it is, and `model.json`."""

    name = "vllm"
    answers_here = False

    def missing(self, recipe: Recipe) -> list[ToolchainError]:
        """Nothing: arguments are made anywhere."""
        return []

    def tools(self, recipe: Recipe) -> dict[str, str]:
        """None: the runtime is where the server is."""
        return {}

    def engine_config(self, recipe: Recipe) -> Config:
        """The arguments themselves."""
        from deploy.repositories.vllm import CHECKPOINT
        from toolchain.engine.arguments import vllm_arguments
        from toolchain.plan.serving import runtime_version

        return {
            "version": runtime_version(recipe),
            "arguments": vllm_arguments(recipe, recipe.deploy.checkpoint or CHECKPOINT),
        }

    def inputs(self, recipe: Recipe) -> BuildInputs:
        """Nothing more."""
        return BuildInputs()

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
        """Write the arguments."""
        text = json.dumps(dict(config["arguments"]), indent=2) + "\n"
        (out_dir / ARGUMENTS).write_text(text, encoding="utf-8")
        return {"vllm": config["version"]}

    def repository_config(self, recipe: Recipe) -> Config:
        """What the front needs to know, and the sources of the models."""
        from deploy.repositories.common import max_requests, models_digest

        return {
            "models": models_digest(),
            "max_requests": max_requests(recipe.engine.max_batch_size, recipe.deploy.max_queue_size),
            "streaming": recipe.deploy.streaming,
        }

    def render(self, engine: Path, checkpoint: Path, out_dir: Path, config: Config) -> dict[str, Any]:
        """Make the repository; the checkpoint is linked into it unless the arguments name another place."""
        from deploy.repositories.vllm import VllmSettings, render_vllm

        settings = VllmSettings(
            checkpoint_dir=checkpoint,
            arguments=json.loads((engine / ARGUMENTS).read_text(encoding="utf-8")),
            max_requests=config["max_requests"],
            streaming=config["streaming"],
        )
        render_vllm(out_dir, settings)
        return {"model": settings.arguments["model"]}

    def answer(
        self, repository: Path, prompts: Sequence[Sequence[int]], max_tokens: int, eos: Sequence[int]
    ) -> list[list[int]]:
        """Never reached: `answers_here` says so."""
        raise ToolchainError("vLLM cannot be run here")
