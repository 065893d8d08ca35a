"""The recipes that come with llmbuild. The directory is the only list: adding a file adds a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FIRST = "demo-int4"
"""Listed before the others: the one that runs on any machine."""


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe file that comes with llmbuild.

    Args:
        name: file name without suffix.
        path: the file.
        description: its first comment line.
    """

    name: str
    path: Path
    description: str


def configs_dir() -> Path:
    """`configs/` of a source checkout, or its copy inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def shipped_recipes() -> list[ShippedRecipe]:
    """Every shipped recipe: the demo first, then by name. Needs neither pydantic nor a YAML parser."""
    paths = sorted(configs_dir().glob("*.yaml"), key=lambda path: (path.stem != FIRST, path.stem))
    return [ShippedRecipe(path.stem, path, _first_comment(path)) for path in paths]


def _first_comment(path: Path) -> str:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            comment = line.removeprefix("#").strip()
            if line.startswith("#") and comment and not comment.startswith("yaml-language-server:"):
                return comment
            if not line.startswith("#") and line.strip():
                break
    return ""
