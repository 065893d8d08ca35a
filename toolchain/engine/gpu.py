"""The GPU flavours without an engine of their own: pytorch and vllm.

Their recipes validate, plan and quantize on any machine. Building their engines and repositories is not
part of this release; `missing` says so before any work, with the ways to get on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.engine.base import BuildInputs, Config
from toolchain.errors import ToolchainError
from toolchain.progress import Progress

if TYPE_CHECKING:
    from toolchain.recipe import Recipe

_NEXT = {
    "pytorch": (
        "tensorrt-llm 1.0 or newer, and an NVIDIA GPU",
        'with `LLM(model="artifacts/NAME/quantize")` of tensorrt-llm',
    ),
    "vllm": ("vLLM, and an NVIDIA GPU", "with `vllm serve artifacts/NAME/quantize`"),
}


class GpuFlavour:
    """A flavour whose checkpoint is made here, and whose engine is made on a GPU machine."""

    answers_here = False

    def __init__(self, name: str) -> None:
        self.name = name

    def missing(self, recipe: Recipe) -> list[ToolchainError]:
        """Always one entry: this release stops at the checkpoint."""
        tools, elsewhere = _NEXT[self.name]
        return [
            ToolchainError(
                f"the {self.name} engine cannot be built here",
                where="engine.flavour",
                why=f"it needs {tools}; this release of llmbuild makes its checkpoint and stops there",
                fix=f"build the checkpoint with `--until quantize` and go on {elsewhere}; or take the "
                "CPU: --set engine.flavour=openvino",
            )
        ]

    def tools(self, recipe: Recipe) -> dict[str, str]:
        """None yet: nothing is built."""
        return {}

    def engine_config(self, recipe: Recipe) -> Config:
        """Nothing: the step is never reached."""
        return {}

    def repository_config(self, recipe: Recipe) -> Config:
        """Nothing: the step is never reached."""
        return {}

    def inputs(self, recipe: Recipe) -> BuildInputs:
        """Nothing: the step is never reached."""
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
        """Never reached: `missing` stops the build before any work."""
        raise ToolchainError(f"the {self.name} engine cannot be built here")

    def render(self, engine: Path, checkpoint: Path, out_dir: Path, config: Config) -> dict[str, Any]:
        """Never reached: `missing` stops the build before any work."""
        raise ToolchainError(f"the {self.name} repository cannot be made here")

    def answer(
        self, repository: Path, prompts: Sequence[Sequence[int]], max_tokens: int, eos: Sequence[int]
    ) -> list[list[int]]:
        """Never reached: `answers_here` says so."""
        raise ToolchainError(f"the {self.name} engine cannot be run here")
