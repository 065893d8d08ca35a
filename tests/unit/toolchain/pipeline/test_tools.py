"""What a recipe needs of this machine, found out before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from toolchain.pipeline import tools
from toolchain.pipeline.tools import missing_tools
from toolchain.recipe import load_recipe


def missing(tmp_path: Path, **quantization: Any) -> list[str]:
    """What is said of a recipe whose `quantization` has these fields."""
    (tmp_path / "text.txt").write_text("text")
    recipe = tmp_path / "recipe.yaml"
    fields = "".join(f"  {name}: {value}\n" for name, value in quantization.items())
    recipe.write_text(
        "schema: 1\nname: a\nmodel: {source: ./m}\nengine: {flavour: pytorch}\n"
        f"quantization:\n  calibration: {{dataset: file:text.txt}}\n  provider: modelopt\n{fields}"
    )
    return [str(error) for error in missing_tools(load_recipe(recipe), until="quantize")]


def test_what_modelopt_cannot_do_is_said_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed", exc_type=ImportError)
    assert missing(tmp_path, method="fp8") == []
    assert missing(tmp_path, method="none") == []
    (said,) = missing(tmp_path, method="awq_gptq")
    assert "not available are method awq_gptq; it has awq, fp8" in said
    assert "use provider: native" in said


def test_modelopt_that_is_absent_is_named_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "versions", lambda *packages: dict.fromkeys(packages, "absent"))
    (said,) = missing(tmp_path, method="fp8")
    assert "nvidia-modelopt is not installed" in said
    assert "pip install 'llmbuild[modelopt]'" in said
