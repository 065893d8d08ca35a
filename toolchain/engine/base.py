"""`Flavour`: what the build asks of every engine flavour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from toolchain.errors import ToolchainError
from toolchain.progress import Progress

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

Config = Mapping[str, Any]
"""JSON: the values of the recipe that one step's output depends on, and no others. It is part of its key."""


@dataclass(frozen=True)
class BuildInputs:
    """What `Flavour.build` is given besides the checkpoint and its config.

    Args:
        arch: the GPU architecture that the engine is for, if it is for one; part of the step's key.
        files: by name, files or directories outside the store; their content is part of the key.
        host: where and how to build, JSON; nothing of it shows in the engine, so it is no part of the key.
    """

    arch: str | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    host: Config = field(default_factory=dict)


class Flavour(Protocol):
    """One way to run a model. Its steps are pure functions of directories and a `Config`.

    The `*_config` methods pick a step's values from the recipe; the steps themselves never see a recipe.
    """

    name: str
    answers_here: bool
    """Whether `answer` can run the engine on the machine that builds it."""

    def missing(self, recipe: Recipe) -> list[ToolchainError]:
        """What this machine lacks to run the flavour's steps for `recipe`; empty when nothing."""

    def tools(self, recipe: Recipe) -> dict[str, str]:
        """Name to version of the tools that the engine's bytes depend on."""

    def engine_config(self, recipe: Recipe) -> Config:
        """What `build` depends on."""

    def inputs(self, recipe: Recipe) -> BuildInputs:
        """What else `build` gets."""

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
        """Make the engine from a checkpoint; return facts for the manifest.

        Args:
            checkpoint: quantized, in Hugging Face layout; TensorRT-LLM's rank files for the tensorrt flavour.
            out_dir: empty; what is in it afterwards is the engine.
            config: as `engine_config` gives it.
            progress: told how far the work is.
            work_dir: scratch that is kept if this fails, on the same file system as `out_dir`.
            inputs: as `inputs` gives it.
        """

    def repository_config(self, recipe: Recipe) -> Config:
        """What `render` depends on."""

    def render(self, engine: Path, checkpoint: Path, out_dir: Path, config: Config) -> dict[str, Any]:
        """Make the Triton model repository around the engine, check it, and return facts."""

    def answer(
        self, repository: Path, prompts: Sequence[Sequence[int]], max_tokens: int, eos: Sequence[int]
    ) -> list[list[int]]:
        """The engine's greedy answers, in tokens. Raises GateError when it does not start or answer."""
