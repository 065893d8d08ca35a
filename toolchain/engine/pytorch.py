"""`PyTorch`: TensorRT-LLM's LLM API on the quantized checkpoint, behind Triton's Python backend.

Nothing is compiled: the engine stage is the arguments of `tensorrt_llm.LLM`, so that a build completes on any
machine. What is rendered has not been run with tensorrt_llm, which is not on the machines that test this.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from toolchain.engine.base import BuildInputs, Config
from toolchain.errors import ToolchainError
from toolchain.progress import Progress

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

ARGUMENTS = "llm_api.yaml"


class PyTorch:
    """The checkpoint as it is, and `model.yaml`."""

    name = "pytorch"
    answers_here = False

    def missing(self, recipe: Recipe) -> list[ToolchainError]:
        """Nothing: arguments are made anywhere."""
        return []

    def tools(self, recipe: Recipe) -> dict[str, str]:
        """None: the runtime is where the server is."""
        return {}

    def engine_config(self, recipe: Recipe) -> Config:
        """The arguments themselves."""
        from deploy.repositories.llmapi import CHECKPOINT
        from toolchain.engine.arguments import llm_api_arguments
        from toolchain.plan.serving import runtime_version

        return {
            "version": runtime_version(recipe),
            "arguments": llm_api_arguments(recipe, recipe.deploy.checkpoint or CHECKPOINT),
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
        text = yaml.safe_dump(dict(config["arguments"]), sort_keys=False)
        (out_dir / ARGUMENTS).write_text(text, encoding="utf-8")
        return {"tensorrt_llm": config["version"]}

    def repository_config(self, recipe: Recipe) -> Config:
        """Limits of the front, and the sources of the models."""
        from toolchain.engine.front import front_config

        return front_config(recipe)

    def render(self, engine: Path, checkpoint: Path, out_dir: Path, config: Config) -> dict[str, Any]:
        """Make the repository; the checkpoint is linked into it unless the arguments name another place."""
        from deploy.repositories.llmapi import LlmApiSettings, render_llmapi
        from toolchain.engine.front import front_facts
        from toolchain.model.spec import load_spec

        values = {key: value for key, value in config.items() if key not in ("flavour", "models")}
        settings = LlmApiSettings(
            checkpoint_dir=checkpoint,
            arguments=yaml.safe_load((engine / ARGUMENTS).read_text(encoding="utf-8")),
            **front_facts(load_spec(checkpoint)),
            **values,
        )
        render_llmapi(out_dir, settings)
        return {"model": settings.arguments["model"]}

    def answer(
        self, repository: Path, prompts: Sequence[Sequence[int]], max_tokens: int, eos: Sequence[int]
    ) -> list[list[int]]:
        """Never reached: `answers_here` says so."""
        raise ToolchainError("tensorrt_llm cannot be run here")
