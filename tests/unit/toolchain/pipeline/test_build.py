"""What `build_recipe` decides before any stage; the stages run in tests/flow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolchain.pipeline.build import build_recipe
from toolchain.pipeline.store import Store
from toolchain.progress import Silent
from toolchain.recipe import load_recipe

CONFIGS = Path(__file__).parents[4] / "configs"


class Notes(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def test_what_is_auto_is_decided_and_recorded(tmp_path: Path) -> None:
    open_fields = ["quantization.method=auto", "parallelism.tensor=auto", "parallelism.pipeline=auto"]
    recipe = load_recipe(CONFIGS / "demo-int4.yaml", open_fields)
    notes: Any = Notes()
    built = build_recipe(
        recipe, out=tmp_path, until="source", progress=notes, store=Store.open(tmp_path / "store")
    )
    recorded = load_recipe(built.artifact / "recipe.yaml")
    assert (recorded.quantization.method, recorded.parallelism.world_size) == ("awq_gptq", 1)
    assert notes.said[0].startswith("auto: awq_gptq, tensor 1 x pipeline 1 (awq_gptq 1.23 x 16-bit")
