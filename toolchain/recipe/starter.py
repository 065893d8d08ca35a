"""A recipe to begin from: a shipped one, copied with its comments, its paths made to hold where it goes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from toolchain.errors import UsageError, os_error
from toolchain.recipe.catalog import configs_dir, shipped_recipes

_SOURCE = ("model", "source")
_NAME = ("name",)


def write_starter(path: Path, like: str, model: str | None = None) -> None:
    """Copy the shipped recipe `like` to `path`, with `model` as its source if given.

    Comments stay. The recipe is named after the file. Paths that were relative to the shipped file become
    relative to the new one.

    Raises:
        UsageError: `path` exists, or no shipped recipe has that name.
        StoreError: the file cannot be written.
    """
    shipped = {recipe.name: recipe.path for recipe in shipped_recipes()}
    if like not in shipped:
        raise UsageError(f"no shipped recipe is called {like}", fix=f"use one of {', '.join(shipped)}")
    text = shipped[like].read_text(encoding="utf-8")
    edits: list[tuple[int, int, str]] = []
    document = yaml.compose(text)
    assert document is not None  # a shipped recipe is never empty
    for keys, node in _scalars(document):
        value = str(node.value)
        if keys == _NAME:
            new = path.stem
        elif keys == _SOURCE and model is not None:
            new = model
        else:
            new = _moved(value, keys, path.parent)
        if new != value:
            edits.append((node.start_mark.index, node.end_mark.index, new))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    schema = os.path.relpath(configs_dir() / "recipe.schema.json", path.parent)
    text = text.replace("$schema=recipe.schema.json", f"$schema={schema}", 1)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists", fix="name another file; init never overwrites one") from None
    except OSError as error:
        raise os_error(error, f"write {path}") from None


def _scalars(
    node: yaml.Node, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], yaml.ScalarNode]]:
    """Every scalar of a document, with the keys that lead to it; items of a list share its keys."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _scalars(value, (*keys, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _scalars(item, keys)
    elif isinstance(node, yaml.ScalarNode):
        yield keys, node


def _moved(value: str, keys: tuple[str, ...], directory: Path) -> str:
    """A value of a shipped recipe as it must read in `directory`."""
    if keys == ("imports",) or (keys == _SOURCE and value.startswith(".")):
        return _relative(value, directory)
    if keys[-1] == "dataset" and value.startswith("file:.."):
        return "file:" + _relative(value.removeprefix("file:"), directory)
    return value


def _relative(value: str, directory: Path) -> str:
    path = os.path.relpath(configs_dir() / value, directory)
    return path if path.startswith("..") else f"./{path}"
