"""Files and overrides to one tree: `imports` depth first, later over earlier, the importing file over all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from toolchain.errors import LlmbuildError
from toolchain.recipe.document import MAX_BYTES, MAX_DEPTH, Items, Leaf, Table, Tree, merge, parse
from toolchain.recipe.marks import Mark, problem, quoted, shown
from toolchain.recipe.schema import SCHEMA_VERSION

MAX_FILES = 64


class Composer:
    """Reads one recipe with everything it imports.

    Attributes:
        problems: what was wrong with the files themselves.
        complete: False when a file or a part of it could not be read, so that a missing value means nothing.
    """

    def __init__(self) -> None:
        self.problems: list[LlmbuildError] = []
        self.complete = True
        self._files = 0

    def file(self, path: Path, *, importer: Mark | None = None, chain: tuple[Path, ...] = ()) -> Table:
        """The tree of `path`, its imports already merged under it and relative paths made absolute.

        Args:
            path: the file, as the user would name it.
            importer: the `imports` entry that names it.
            chain: the files that are being read, outermost first.
        """
        nothing = Table(Mark(str(path), 1, 1))
        text = self._read(path, importer, nothing.mark)
        if text is None:
            self.complete = False
            return nothing
        known = len(self.problems)
        tree = parse(text, str(path), self.problems)
        if tree is None and len(self.problems) == known:
            self._report("the recipe is empty", nothing.mark, "a recipe is a YAML mapping", _START)
        elif tree is not None and not isinstance(tree, Table):
            self._report(
                "the recipe is not a mapping", tree.mark, "a recipe is a YAML mapping of sections", _START
            )
        if not isinstance(tree, Table) or not self._right_schema(tree):
            self.complete = False
            return nothing
        imports = tree.values.pop("imports", None)
        tree.keys.pop("imports", None)
        tree = anchor_paths(tree, path.parent)
        merged = nothing
        for entry in self._import_entries(imports):
            merged = merge(merged, self._import(entry, path, (*chain, path)))
        return merge(merged, tree)

    def override(self, argument: str) -> Table:
        """The tree of one `--set a.b=c`; relative paths in it are relative to the working directory."""
        mark = Mark(f"--set {argument if argument.isprintable() else ascii(argument)[1:-1]}")
        key, equals, text = argument.partition("=")
        steps = key.strip().split(".")
        if not equals or not all(steps) or len(steps) > MAX_DEPTH:
            self._report(
                "an override is not of the form KEY=VALUE",
                mark,
                "KEY is a field's path, its parts separated by dots",
                "write it like --set engine.max_batch_size=8",
            )
            return Table(mark)
        if steps[0] == "imports":
            self._report(
                "`imports` cannot be overridden",
                mark,
                "files are composed first",
                "name the files in a recipe",
            )
            return Table(mark)
        known = len(self.problems)
        value = parse(text, mark.origin, self.problems, in_file=False)
        if value is None:  # not YAML, or nothing at all, which is YAML for null
            value = Leaf(None, mark, reported=len(self.problems) > known)
        for step in reversed(steps):
            value = Table(mark, {step: value}, {step: mark})
        assert isinstance(value, Table)
        return anchor_paths(value, Path.cwd())

    def _report(self, what: str, mark: Mark, why: str, fix: str) -> None:
        self.problems.append(problem(what, mark, why=why, fix=fix))

    def _read(self, path: Path, importer: Mark | None, start: Mark) -> str | None:
        mark = importer or Mark(str(path))
        self._files += 1
        if self._files > MAX_FILES:
            if self._files == MAX_FILES + 1:
                self._report(
                    f"more than {MAX_FILES} files are imported",
                    mark,
                    "files that import one another several times multiply",
                    "import each file once",
                )
            return None
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else None
            self._report(f"cannot read {quoted(str(path))}", mark, reason or str(error), _similar_file(path))
            return None
        if len(data) > MAX_BYTES:
            self._report(
                f"{quoted(str(path))} is too large",
                mark,
                f"a recipe has at most {MAX_BYTES >> 20} MiB; is this another kind of file?",
                "name a recipe file",
            )
            return None
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            # The mark counts characters, which all bytes before the bad one are.
            before = data[: error.start].decode("utf-8-sig", errors="replace").split("\n")
            self._report(
                "the file is not UTF-8 text",
                Mark(start.origin, len(before), len(before[-1]) + 1),
                f"byte 0x{data[error.start]:02x} cannot stand here",
                "save the file as UTF-8",
            )
            return None

    def _right_schema(self, tree: Table) -> bool:
        """Whether this file's `schema` is one that we read; anything else in the file means nothing then."""
        stated = tree.values.get("schema")
        value = stated.value if isinstance(stated, Leaf) else None
        if type(value) is int and value == SCHEMA_VERSION:
            return True
        # Reported here; validation must not find it again.
        tree.values["schema"] = Leaf(None, stated.mark if stated else tree.mark, reported=True)
        tree.keys.setdefault("schema", tree.mark)
        if stated is None:
            self._report(
                "`schema` is missing",
                tree.mark,
                "it tells which version of the recipe format the file is written in",
                f"add `schema: {SCHEMA_VERSION}` as the first line",
            )
            return True
        if type(value) is int and value > SCHEMA_VERSION:
            fix = "upgrade llmbuild: pip install --upgrade llmbuild"
            self._report(
                f"`schema: {value}` is newer than this llmbuild",
                stated.mark,
                f"it reads schema {SCHEMA_VERSION}",
                fix,
            )
            return False
        given = shown(value) if isinstance(stated, Leaf) else "a list or a mapping"
        self._report(
            f"`schema` must be the number {SCHEMA_VERSION}",
            stated.mark,
            f"it is {given}",
            f"write `schema: {SCHEMA_VERSION}`",
        )
        return True

    def _import_entries(self, imports: Tree | None) -> Sequence[Leaf]:
        if imports is None:
            return []
        if isinstance(imports, Items):
            entries = [
                v for v in imports.values if isinstance(v, Leaf) and isinstance(v.value, str) and v.value
            ]
            if len(entries) == len(imports.values):
                return entries
        self._report(
            "`imports` must be a list of recipe files",
            imports.mark,
            "each entry is a path relative to this file",
            "write `imports: [other.yaml]`",
        )
        self.complete = False
        return []

    def _import(self, entry: Leaf, importing: Path, chain: tuple[Path, ...]) -> Table:
        assert isinstance(entry.value, str)
        path = Path(os.path.normpath(importing.parent / os.path.expanduser(entry.value)))  # noqa: PTH111
        identities = [_identity(seen) for seen in chain]
        if _identity(path) in identities:
            cycle = [*chain[identities.index(_identity(path)) :], path]
            self._report(
                f"{quoted(entry.value)} imports itself",
                entry.mark,
                "the files go round in a circle: " + " -> ".join(map(str, cycle)),
                "remove one of these imports",
            )
            self.complete = False
            return Table(entry.mark)
        return self.file(path, importer=entry.mark, chain=chain)


_START = "begin with `schema: 1`, `name: ...` and `model: {source: ...}`; `llmbuild ls` lists recipes to copy"


def _identity(path: Path) -> str:
    """The file itself, whichever way it was reached."""
    try:
        return os.path.realpath(path)
    except ValueError:  # no name of a file at all, such as one with a NUL: reading it will say so
        return str(path)


def _similar_file(path: Path) -> str:
    try:
        near = get_close_matches(
            path.name, [p.name for p in path.parent.iterdir() if p.suffix in (".yaml", ".yml")], 1
        )
    except (OSError, ValueError):
        near = []
    return (
        f"did you mean {path.parent / near[0]}?"
        if near
        else "check the path; `llmbuild ls` lists shipped recipes"
    )


def anchor_paths(tree: Table, directory: Path) -> Table:
    """`tree` with the relative paths in it made absolute, as seen from `directory`."""

    def absolute(path: str) -> str:
        return os.path.abspath(directory / os.path.expanduser(path))  # noqa: PTH100, PTH111 (lexical, any text)

    def source(text: str) -> str:
        return absolute(text) if text.startswith(("./", "../", "~/")) or text in (".", "..", "~") else text

    def dataset(text: str) -> str:
        path = text.removeprefix("file:")
        return f"file:{absolute(path)}" if text.startswith("file:") and path else text

    tree = _map_leaf(tree, ("model", "source"), source)
    tree = _map_leaf(tree, ("quantization", "calibration", "dataset"), dataset)
    tree = _map_leaf(tree, ("gates", "perplexity", "dataset"), dataset)
    tree = _map_leaf(tree, ("engine", "speculative", "source"), source)
    tree = _map_leaf(tree, ("engine", "build", "input_timing_cache"), source)
    tree = _map_leaf(tree, ("engine", "build", "lora_dir"), source)
    return _map_leaf(tree, ("gates", "kl", "dataset"), dataset)


def _map_leaf(tree: Table, path: tuple[str, ...], change: Callable[[str], str]) -> Table:
    child = tree.values.get(path[0])
    if len(path) > 1 and isinstance(child, Table):
        changed: Tree = _map_leaf(child, path[1:], change)
    elif len(path) == 1 and isinstance(child, Leaf | Items):
        changed = _map_text(child, change)
    else:
        return tree
    return Table(tree.mark, tree.values | {path[0]: changed}, tree.keys)


def _map_text(tree: Tree, change: Callable[[str], str]) -> Tree:
    """`change` applied to a text, or to each text of a list."""
    if isinstance(tree, Items):
        return replace(tree, values=[_map_text(item, change) for item in tree.values])
    if isinstance(tree, Leaf) and isinstance(tree.value, str):
        return replace(tree, value=change(tree.value))
    return tree
