"""YAML text to a tree that remembers where every key and value was written.

Only mappings, lists and scalars come out of it: no tags, no objects, no merge keys. Size, depth and the
number of values after expanding aliases are bounded, so a hostile file costs milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    """A scalar. `raw` is its text as written where it was not quoted, None where it was."""

    value: Scalar
    mark: Mark
    raw: str | None = None


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

    def mark_at(mark: Any) -> Mark:
        if not in_file or mark is None:
            return Mark(origin)
        line = lines[mark.line] if mark.line < len(lines) else ""
        return Mark(origin, mark.line + 1, mark.column + 1, line)

    try:
        # Creating the loader already reads: it looks for unprintable characters.
        loader = _Loader(text)
        root = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        before = _NEWLINE.split(text[: error.position])
        column = len(before[-1]) + 1
        mark = Mark(origin, len(before), column, lines[len(before) - 1]) if in_file else Mark(origin)
        problems.append(
            problem(
                f"character {quoted(text[error.position])} is not allowed in YAML",
                mark,
                why="YAML text consists of printable characters",
                fix="remove the character",
            )
        )
        return None
    except yaml.MarkedYAMLError as error:
        problems.append(_syntax_problem(error, mark_at(error.problem_mark or error.context_mark)))
        return None
    except ValueError as error:  # an escape such as "\UFFFFFFFF", which PyYAML passes to chr()
        problems.append(
            problem(
                "not readable as YAML", Mark(origin), why=str(error), fix="check the escapes in quoted text"
            )
        )
        return None
    if root is None:
        return None
    return _Converter(mark_at, problems).convert(root, 0)


def _syntax_problem(error: yaml.MarkedYAMLError, mark: Mark) -> LlmbuildError:
    said = ", ".join(part for part in (error.context, error.problem) if part)
    for needle, also, means, fix in _HINTS:
        if needle in said and also in said:
            return problem("not valid YAML", mark, why=means or said, fix=fix)
    return problem("not valid YAML", mark, why=said, fix="correct the YAML syntax at this place")


class _Converter:
    """Nodes to a `Tree`, counting values so that aliases cannot multiply without end."""

    def __init__(self, mark_at: Any, problems: list[LlmbuildError]) -> None:
        self._mark_at = mark_at
        self._problems = problems
        self._count = 0

    def convert(self, node: yaml.Node, depth: int) -> Tree:
        mark: Mark = self._mark_at(node.start_mark)
        self._count += 1
        if self._count > MAX_VALUES or depth > MAX_DEPTH:
            if self._count < 2 * MAX_VALUES:  # say it once
                self._problems.append(
                    problem(
                        f"more than {MAX_VALUES} values, or more than {MAX_DEPTH} levels",
                        mark,
                        why="an alias repeats others, or itself",
                        fix="remove the alias",
                    )
                )
            self._count = 2 * MAX_VALUES
            return Leaf(None, mark)
        if node.tag not in _STANDARD_TAGS:
            self._report_tag(node, mark)
            return Leaf(None, mark)
        if isinstance(node, yaml.MappingNode):
            return self._table(node, mark, depth)
        if isinstance(node, yaml.SequenceNode):
            return Items([self.convert(child, depth + 1) for child in node.value], mark)
        assert isinstance(node, yaml.ScalarNode)
        if node.style is not None:  # quoted, or a block scalar
            return Leaf(node.value, mark)
        return Leaf(resolve(node.value), mark, node.value)

    def _table(self, node: yaml.MappingNode, mark: Mark, depth: int) -> Table:
        table = Table(mark)
        for key_node, value_node in node.value:
            key_mark = self._mark_at(key_node.start_mark)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _STANDARD_TAGS:
                self._problems.append(
                    problem(
                        "a key is not plain text",
                        key_mark,
                        why="keys are names of fields",
                        fix="write a name",
                    )
                )
                continue
            key = key_node.value
            if key == "<<" and key_node.style is None:
                self._problems.append(
                    problem(
                        "merge keys (`<<`) are not used in recipes",
                        key_mark,
                        why="they are not part of YAML 1.2, and readers differ on them",
                        fix="put what is shared into a file of its own and name it under `imports:`",
                    )
                )
                continue
            if key in table.keys:
                self._problems.append(
                    problem(
                        f"key {quoted(key)} is given twice",
                        key_mark,
                        why=f"the first is at {table.keys[key]}; YAML readers differ on which one counts",
                        fix="remove one of the two",
                    )
                )
            table.keys[key] = key_mark
            table.values[key] = self.convert(value_node, depth + 1)
        return table

    def _report_tag(self, node: yaml.Node, mark: Mark) -> None:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        self._problems.append(
            problem(
                f"tag {quoted(tag)} is not allowed",
                mark,
                why="a recipe is plain data: text, numbers, true, false, null, lists and mappings",
                fix="remove the tag; put quotes around a value that must be text",
            )
        )


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
