"""YAML text to a tree that remembers where every key and value was written.

Only mappings, lists and scalars come out of it: no tags, no objects, no merge keys. Size, depth and the
number of values after expanding aliases are bounded, so a hostile file costs milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Union

import yaml

from toolchain.errors import LlmbuildError
from toolchain.recipe.marks import Mark, problem, quoted
from toolchain.recipe.scalars import Scalar, resolve

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 20_000


Tree = Union["Leaf", "Items", "Table"]


@dataclass(frozen=True)
class Leaf:
    """A scalar, or the place of something unusable.

    Args:
        value: the value.
        mark: where it begins.
        raw: its text as written where it was not quoted, None where it was.
        reported: a problem was reported here already; the value says nothing.
    """

    value: Scalar
    mark: Mark
    raw: str | None = None
    reported: bool = False


@dataclass(frozen=True)
class Items:
    """A list."""

    values: list[Tree]
    mark: Mark


@dataclass(frozen=True)
class Table:
    """A mapping: the position of each key, and its value."""

    mark: Mark
    values: dict[str, Tree] = field(default_factory=dict)
    keys: dict[str, Mark] = field(default_factory=dict)


KeyPath = tuple[str | int, ...]
"""Keys and list indices from the root to a value."""


class _Loader(yaml.SafeLoader):
    """SafeLoader's parser; what plain scalars mean is decided by `scalars`, so no tag is ever implied."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (the type PyYAML declares)
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(
                None,
                None,
                f"nested deeper than {MAX_DEPTH} levels",
                self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


_STANDARD_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}
_NEWLINE = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

# What PyYAML says -> (what that means for the person who wrote the file, what to do).
_HINTS = (
    ("cannot start any token", "\\t", "a tab is used for indentation", "indent with spaces"),
    ("mapping values are not allowed", "", "", "put quotes around a value that contains ': ', put a space "
     "after the colon of a key, and begin all keys of one section in the same column"),
    ("could not find expected ':'", "", "", "write `key: value`, with a space after the colon"),
    ("expected <block end>", "", "", "begin all keys of one section in the same column"),
    ("expected a single document", "", "", "keep one recipe in a file: remove the second `---`"),
    ("undefined alias", "", "", "define the anchor with `&name` before its first use"),
    ("while scanning a quoted scalar", "", "", "close the quotes"),
    ("expected ',' or", "", "", "close the bracket, and separate its elements with commas"),
)  # fmt: skip


def parse(text: str, origin: str, problems: list[LlmbuildError], *, in_file: bool = True) -> Tree | None:
    """Parse YAML text; None when it is empty or not YAML. Problems are appended, never raised.

    Args:
        text: the text, without byte order mark.
        origin: what its marks name as their file.
        problems: receives syntax errors, duplicate keys, tags and the like.
        in_file: False for a `--set` argument, whose marks have no line and column.
    """
    lines = _NEWLINE.split(text)

    def mark_at(line: int, column: int) -> Mark:
        """A mark from PyYAML's line and column, which count from 0."""
        if not in_file:
            return Mark(origin)
        return Mark(origin, line + 1, column + 1, lines[line] if line < len(lines) else "")

    loader = None
    try:
        loader = _Loader(text)  # reads already: it looks for unprintable characters
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = _NEWLINE.split(text[: error.position])
        problems.append(
            problem(
                f"character {quoted(text[error.position])} is not allowed in YAML",
                mark_at(len(before) - 1, len(before[-1])),
                why="YAML text consists of printable characters",
                fix="remove the character",
            )
        )
        return None
    except yaml.MarkedYAMLError as error:
        # Where a key or a quotation began says more than where the scanner gave up on it.
        began = error.context_mark if (error.context or "").startswith("while scanning") else None
        at = began or error.problem_mark or error.context_mark
        problems.append(_syntax_problem(error, mark_at(at.line, at.column) if at else mark_at(0, 0)))
        return None
    except (ValueError, OverflowError):  # PyYAML passes any \U escape to chr()
        problems.append(
            problem(
                "not valid YAML",
                mark_at(loader.line, loader.column) if loader else mark_at(0, 0),
                why="the escape stands for no character",
                fix="correct the \\U escape",
            )
        )
        return None
    if root is None:
        return None
    return _Converter(mark_at, problems).convert(root)


def _syntax_problem(error: yaml.MarkedYAMLError, mark: Mark) -> LlmbuildError:
    said = ", ".join(part for part in (error.context, error.problem) if part)
    for needle, also, means, fix in _HINTS:
        if needle in said and also in said:
            return problem("not valid YAML", mark, why=means or said, fix=fix)
    return problem("not valid YAML", mark, why=said, fix="correct the YAML syntax at this place")


class _Converter:
    """Nodes to a `Tree`, counting values so that aliases cannot multiply without end."""

    def __init__(self, mark_at: Callable[[int, int], Mark], problems: list[LlmbuildError]) -> None:
        self._mark_at = mark_at
        self._problems = problems
        self._count = 0
        self._open: list[yaml.Node] = []

    def convert(self, node: yaml.Node) -> Tree:
        """The tree of `node`; what cannot be used becomes a reported leaf."""
        mark = self._mark_at(node.start_mark.line, node.start_mark.column)
        self._count += 1
        why = None
        if any(node is outer for outer in self._open):
            why = "an alias stands inside what it names"
        elif len(self._open) >= MAX_DEPTH:
            why = f"aliases make it nest deeper than {MAX_DEPTH} levels"
        elif self._count > MAX_VALUES:
            if self._count > MAX_VALUES + 1:  # said already
                return Leaf(None, mark, reported=True)
            why = f"aliases make more than {MAX_VALUES} values of it"
        if why is not None:
            return self._unusable("the recipe repeats itself", mark, why, "write the values out")
        if node.tag not in _STANDARD_TAGS:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            return self._unusable(
                f"tag {quoted(tag)} is not allowed",
                mark,
                "a recipe is plain data: text, numbers, true, false, null, lists and mappings",
                "remove the tag; put quotes around a value that must be text",
            )
        self._open.append(node)
        try:
            return self._value(node, mark)
        finally:
            self._open.pop()

    def _value(self, node: yaml.Node, mark: Mark) -> Tree:
        if isinstance(node, yaml.MappingNode):
            return self._table(node, mark)
        if isinstance(node, yaml.SequenceNode):
            return Items([self.convert(child) for child in node.value], mark)
        assert isinstance(node, yaml.ScalarNode)
        if node.style is not None:  # quoted, or a block scalar
            return Leaf(node.value, mark)
        return Leaf(resolve(node.value), mark, node.value)

    def _table(self, node: yaml.MappingNode, mark: Mark) -> Table:
        table = Table(mark)
        for key_node, value_node in node.value:
            key_mark = self._mark_at(key_node.start_mark.line, key_node.start_mark.column)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _STANDARD_TAGS:
                self._unusable(
                    "a key is not plain text", key_mark, "keys are names of fields", "write a name"
                )
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self._unusable(
                    "merge keys (`<<`) are not used in recipes",
                    key_mark,
                    "they are not part of YAML 1.2, and readers differ on them",
                    "put what is shared into a file of its own and name it under `imports:`",
                )
                continue
            if key in table.keys:
                self._unusable(
                    f"key {quoted(key)} is given twice",
                    key_mark,
                    f"the first is at {table.keys[key]}; YAML readers differ on which one counts",
                    "remove one of the two",
                )
            table.keys[key] = key_mark
            table.values[key] = self.convert(value_node)
        return table

    def _unusable(self, what: str, mark: Mark, why: str, fix: str) -> Leaf:
        self._problems.append(problem(what, mark, why=why, fix=fix))
        return Leaf(None, mark, reported=True)


def plain(tree: Tree) -> Any:
    """The same data without positions."""
    if isinstance(tree, Table):
        return {key: plain(value) for key, value in tree.values.items()}
    if isinstance(tree, Items):
        return [plain(value) for value in tree.values]
    return tree.value


def merge(base: Table, over: Table) -> Table:
    """`over` laid on `base`: mappings merge key by key, anything else is replaced."""
    values = dict(base.values)
    for key, value in over.values.items():
        below = values.get(key)
        values[key] = merge(below, value) if isinstance(below, Table) and isinstance(value, Table) else value
    return Table(over.mark, values, base.keys | over.keys)


def find(tree: Tree, path: KeyPath) -> Tree | None:
    """The value at `path`, or None."""
    for step in path:
        if isinstance(tree, Table) and step in tree.values:
            tree = tree.values[str(step)]
        elif isinstance(tree, Items) and isinstance(step, int) and step < len(tree.values):
            tree = tree.values[step]
        else:
            return None
    return tree


def locate(tree: Tree, path: KeyPath, *, key: bool = False) -> Mark:
    """The mark of what stands at `path`: of a scalar's or list's value, of a section's key.

    With `key`, the key's in any case. Where nothing stands there, the nearest section above it.
    """
    for length in range(len(path), 0, -1):
        found, parent = find(tree, path[:length]), find(tree, path[: length - 1])
        if found is not None:
            if isinstance(parent, Table) and (key or isinstance(found, Table)):
                return parent.keys[str(path[length - 1])]
            return found.mark
    return tree.mark


def leaves(tree: Tree, path: KeyPath = ()) -> Iterator[tuple[KeyPath, Leaf]]:
    """Every scalar with its path, in the order of the tree."""
    if isinstance(tree, Leaf):
        yield path, tree
    elif isinstance(tree, Table):
        for key, value in tree.values.items():
            yield from leaves(value, (*path, key))
    else:
        for index, value in enumerate(tree.values):
            yield from leaves(value, (*path, index))
