"""A recipe to begin from: a shipped one, copied with its comments, its paths made to hold where it goes."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from toolchain.errors import LlmbuildError, RecipeError, UsageError, file_error
from toolchain.recipe.catalog import configs_dir, shipped_recipes
from toolchain.recipe.document import Items, Leaf, parse
from toolchain.recipe.load import load_recipe
from toolchain.recipe.marks import quoted
from toolchain.recipe.scalars import ambiguity
from toolchain.recipe.section import SOURCE_FORM

_SOURCE = ("model", "source")
_NAME = ("name",)


def write_starter(path: Path, like: str, model: str | None = None) -> None:
    """Copy the shipped recipe `like` to `path`, with `model` as its source if given.

    Comments stay. The recipe is named after the file. Paths that were relative to the shipped file become
    relative to the new one, and so does a `model` that begins with `./` or `../`.

    Raises:
        UsageError: `path` exists or cannot be written, no shipped recipe has that name, or `model` is
            neither a Hub id nor a path.
    """
    shipped = {recipe.name: recipe.path for recipe in shipped_recipes()}
    if like not in shipped:
        raise UsageError(f"no shipped recipe is called {like}", fix=f"use one of {', '.join(shipped)}")
    if os.path.lexists(path):
        raise _exists(path)
    data = _adapted(shipped[like].read_text(encoding="utf-8"), path, model).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        load_recipe(temporary)
        path.open("xb").close()  # fails if another has made it meanwhile
        temporary.replace(path)
    except RecipeError as error:
        if model is None:
            raise
        what = f"--model {quoted(model)} would make a recipe that is not valid"
        raise UsageError(what, why=error.problems[0].what, fix=f"give {SOURCE_FORM}") from None
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        error.filename = str(path)
        raise file_error(error, "write the recipe") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists", fix="name another file; init never overwrites one")


def _adapted(text: str, path: Path, model: str | None) -> str:
    """The text of a shipped recipe as it must read at `path`."""
    edits: list[tuple[int, int, str]] = []
    document = yaml.compose(text)
    assert document is not None  # a shipped recipe is never empty
    for keys, node in _scalars(document):
        value = str(node.value)
        start, end = node.start_mark.index, node.end_mark.index
        if keys == _NAME:
            new = _slug(path.stem)
            line_end = text.index("\n", end)
            edits.append((end, line_end, text[end:line_end].replace(value, new)))  # a comment that says it
        elif keys == _SOURCE and model is not None:
            new = _relative(Path.cwd() / model, path.parent) if model.startswith(("./", "../")) else model
        else:
            new = _moved(value, keys, path.parent)
        if new != value:
            edits.append((start, end, _as_scalar(new)))
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    schema = os.path.relpath(configs_dir() / "recipe.schema.json", path.parent)
    return text.replace("$schema=recipe.schema.json", f"$schema={schema}", 1)


def _slug(stem: str) -> str:
    """A file's stem as a recipe's name."""
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("._-")[:63] or "recipe"


def _as_scalar(value: str) -> str:
    """A text as YAML: plain where that means the same, else in double quotes."""
    problems: list[LlmbuildError] = []
    match parse(f"[{value} ]", "", problems):  # in a list fewer characters may be plain than elsewhere
        case Items(values=[Leaf(value=read, raw=str())]) if read == value and not (
            problems or ambiguity(value)
        ):
            return value
    return json.dumps(value, ensure_ascii=False)


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
    if keys == ("imports",) or (keys[-1] == "source" and value.startswith(".")):
        return _relative(configs_dir() / value, directory)
    if keys[-1] == "dataset" and value.startswith("file:.."):
        return "file:" + _relative(configs_dir() / value.removeprefix("file:"), directory)
    return value


def _relative(target: Path, directory: Path) -> str:
    path = os.path.relpath(target, directory)
    return path if path.startswith("..") else f"./{path}"
