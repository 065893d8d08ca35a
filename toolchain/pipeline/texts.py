"""The data sets of a recipe: found before any work, then sources of the stages that read them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from toolchain.errors import UsageError
from toolchain.gate.verdict import wanted
from toolchain.pipeline.stage import Source
from toolchain.text.files import TextFiles, find_text, form_of

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.recipe.text import Text

CALIBRATION = "calibration"
"""Name of the calibration text; held-out texts are named after their gates."""


def find_texts(recipe: Recipe, *, calibration: bool, gates: bool) -> dict[str, TextFiles]:
    """The data sets of the recipe that are wanted, by name; those of the Hub are downloaded.

    Raises:
        UsageError: a local file is missing or cannot be read.
        DataError, ToolchainError: as in `find_text`.
    """
    named = list(_named(recipe, calibration, gates))
    for _name, kind, field, text in named:
        if text.file is not None:
            require_file(text.file, kind, field)
    return {
        name: find_text(
            text.dataset,
            revision=text.revision,
            subset=text.subset,
            split=text.split,
            column=text.column,
        )
        for name, _kind, _field, text in named
    }


def _named(recipe: Recipe, calibration: bool, gates: bool) -> Iterator[tuple[str, str, str, Text]]:
    quant = recipe.quantization
    if calibration and quant.calibrates and quant.calibration is not None:
        yield CALIBRATION, "calibration", "quantization.calibration.dataset", quant.calibration
    searches = calibration and quant.search is not None and quant.search.max_kl is not None
    for name, text in wanted(recipe.gates).items():
        if not gates and not (searches and name == "kl"):
            continue
        yield name, "held-out text", f"gates.{name}.dataset", text


def require_file(file: Path, kind: str, field: str) -> None:
    """Make sure that a local text can be read. Raises UsageError, which names the `field` that named it."""
    if file.is_file() and os.access(file, os.R_OK):
        return
    if not file.exists():
        what = f"there is no such {kind} file"
    elif not file.is_file():
        what = f"the {kind} file is not a regular file"
    else:
        what = f"the {kind} file cannot be read: check its permissions"
    raise UsageError(
        what, where=str(file), fix=f"set {field} to file:PATH, a text, .jsonl, .json or .parquet file"
    )


def text_source(text: TextFiles) -> Source:
    """A data set as a source: its bytes are what counts, of a Hub data set also the names of its files."""
    if text.commit is None:
        return Source(text.files[0])
    snapshot = _snapshot(text)
    return Source(snapshot, tuple(glob.escape(name) for name in _names(text, snapshot)))


def text_config(text: TextFiles) -> dict[str, Any]:
    """What decides how the bytes are read, for the config of a stage.

    The commit is not in it: one that changes none of the files changes nothing.
    """
    config = {"form": form_of(text.files[0]), "column": text.column}
    if text.commit is None:
        return config
    return config | {"dataset": text.name, "files": _names(text, _snapshot(text))}


def read_text(source: Path, config: Mapping[str, Any]) -> TextFiles:
    """The data set again, from the path of its source and its `text_config`."""
    if "files" not in config:
        return TextFiles.local(source, config["column"])
    files = tuple(source / name for name in config["files"])
    return TextFiles(config["dataset"], files, config["column"], commit=source.name)


def _snapshot(text: TextFiles) -> Path:
    """The directory in the Hub's cache, which is named after the commit."""
    return next(parent for parent in text.files[0].parents if parent.name == text.commit)


def _names(text: TextFiles, snapshot: Path) -> list[str]:
    return [PurePath(file).relative_to(snapshot).as_posix() for file in text.files]
