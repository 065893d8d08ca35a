"""The shipped recipes: that they are listed, found when installed, and explain themselves line by line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import toolchain
from toolchain.recipe import load_recipe, shipped_recipes

SHIPPED = shipped_recipes()


def test_the_demo_comes_first_and_every_recipe_says_what_it_is_for() -> None:
    assert SHIPPED[0].name == "demo-int4"
    assert [recipe.name for recipe in SHIPPED[1:]] == sorted(recipe.name for recipe in SHIPPED[1:])
    assert all(20 < len(recipe.description) < 110 for recipe in SHIPPED)
    assert not any("yaml-language-server" in recipe.description for recipe in SHIPPED)


@pytest.mark.parametrize("path", [recipe.path for recipe in SHIPPED], ids=lambda path: path.stem)
def test_every_line_with_a_value_says_why_one_would_change_it(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert lines[0] == "# yaml-language-server: $schema=recipe.schema.json"
    for line in lines:
        key, _, value = line.partition(":")
        if value.strip() and not key.lstrip().startswith("#") and line != "schema: 1":
            assert "  # " in line or " # " in value, line


@pytest.mark.parametrize("name", ["llama70b-int4", "llama8b-fp8", "qwen2.5-7b-gptq", "mistral7b-int4-cpu"])
def test_recipes_for_other_machines_load_without_their_files(name: str) -> None:
    (path,) = [recipe.path for recipe in SHIPPED if recipe.name == name]
    calibration = load_recipe(path).quantization.calibration
    assert calibration is not None
    assert calibration.file == path.parent / "calib.jsonl"
    assert not calibration.file.exists()


def test_the_demo_recipes_differ_in_quantization_alone() -> None:
    int4, bf16 = (load_recipe(recipe.path) for recipe in SHIPPED[:2])
    assert bf16.name == "demo-bf16"
    assert bf16.quantization.method == "none"
    assert int4.quantization.method == "awq"
    assert (bf16.model, bf16.engine, bf16.deploy) == (int4.model, int4.engine, int4.deploy)


def test_an_installed_package_carries_its_own_copies(tmp_path: Path) -> None:
    """In a wheel the recipes lie in toolchain/configs."""
    source = Path(toolchain.__file__).parent
    package = tmp_path / "toolchain"
    (package / "recipe").mkdir(parents=True)
    for name in ("__init__.py", "recipe/__init__.py", "recipe/catalog.py"):
        (package / name).write_bytes((source / name).read_bytes())
    (package / "configs").mkdir()
    (package / "configs" / "only.yaml").write_text("# The only one.\nschema: 1\n", "utf-8")
    script = "import toolchain.recipe as r; print([(x.name, x.description) for x in r.shipped_recipes()])"
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[('only', 'The only one.')]"


def test_listing_needs_neither_pydantic_nor_yaml() -> None:
    script = (
        "import sys; from toolchain.recipe import shipped_recipes; shipped_recipes(); "
        "print([m for m in ('pydantic', 'yaml', 'torch', 'transformers') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_loading_needs_neither_torch_nor_transformers() -> None:
    script = (
        "import sys; from toolchain.recipe import load_recipe, shipped_recipes; "
        "load_recipe(shipped_recipes()[0].path); "
        "print([m for m in ('torch', 'transformers', 'numpy', 'openvino') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
