"""YAML with positions: the tree, its merge, and the bounds that keep hostile input cheap."""

from __future__ import annotations

from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st

from toolchain.errors import LlmbuildError
from toolchain.recipe.document import Items, Leaf, Table, Tree, find, leaves, locate, merge, parse, plain
from toolchain.recipe.marks import Mark

TEXT = """\
a: 1
b:
  c: [x, "y"]
  d: {e: null}
"""


def tree_of(text: str) -> Tree:
    problems: list[LlmbuildError] = []
    tree = parse(text, "f", problems)
    assert not problems
    assert tree is not None
    return tree


def problems_of(text: str) -> list[str]:
    problems: list[LlmbuildError] = []
    parse(text, "f", problems)
    return [f"{problem.where}: {problem.what}" for problem in problems]


def table(data: dict[str, Any]) -> Table:
    """A tree of nested dicts, without positions."""
    mark = Mark("f")
    values: dict[str, Tree] = {
        key: table(value) if isinstance(value, dict) else Leaf(value, mark) for key, value in data.items()
    }
    return Table(mark, values, dict.fromkeys(data, mark))


def test_plain_data() -> None:
    assert plain(tree_of(TEXT)) == {"a": 1, "b": {"c": ["x", "y"], "d": {"e": None}}}


def test_every_value_and_key_has_its_place() -> None:
    tree = tree_of(TEXT)
    places = {".".join(map(str, path)): str(leaf.mark) for path, leaf in leaves(tree)}
    assert places == {"a": "f:1:4", "b.c.0": "f:3:7", "b.c.1": "f:3:10", "b.d.e": "f:4:10"}
    assert str(locate(tree, ("b",))) == "f:2:1"  # a section: its key
    assert str(locate(tree, ("b", "c"))) == "f:3:6"
    assert str(locate(tree, ("b", "c"), key=True)) == "f:3:3"
    assert str(locate(tree, ("b", "d", "missing", "deeper"))) == "f:4:3"
    assert find(tree, ("b", "missing")) is None
    assert isinstance(find(tree, ("b", "c")), Items)


def test_quoted_scalars_stay_text() -> None:
    assert plain(tree_of("[1, '1', \"true\", true, |-\n  2\n]".replace("|-\n  2\n", "'2'"))) == [
        1, "1", "true", True, "2",
    ]  # fmt: skip
    assert plain(tree_of("a: |-\n  1")) == {"a": "1"}


def test_an_alias_bomb_is_defused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (problem,) = problems_of("\n".join(lines))
    assert "repeats itself" in problem


def test_aliases_cannot_nest_without_end() -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{x: *a{n - 1}}}" for n in range(1, 200)]
    problems = problems_of("\n".join(lines))
    assert problems
    assert all("repeats itself" in problem for problem in problems)


def test_deep_nesting_is_a_syntax_problem() -> None:
    (problem,) = problems_of("a: " + "[" * 5000)
    assert problem == "f:1:35: not valid YAML"


def test_marks_count_characters_not_bytes() -> None:
    tree = tree_of("{\u00e9\u00e9\u00e9: \u4e2d, b: 1}")
    assert str(locate(tree, ("b",))) == "f:1:13"


def test_unicode_line_ends_do_not_shift_the_line_shown() -> None:
    problems: list[LlmbuildError] = []
    parse("a: 1\u2028b: 2\x85c: !t x", "f", problems)
    assert problems[0].where == "f:3:4"
    assert "3 | c: !t x" in str(problems[0])


TEXTS = st.recursive(
    st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(data=TEXTS, flow=st.booleans(), escaped=st.booleans())
def test_quoted_yaml_comes_back(data: Any, flow: bool, escaped: bool) -> None:
    text = yaml.safe_dump(data, default_style='"', default_flow_style=flow, allow_unicode=not escaped)
    assert plain(tree_of(text)) == data


TABLES = st.recursive(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner | st.integers(0, 9), max_size=3),
    max_leaves=8,
)


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


@given(base=TABLES, over=TABLES)
def test_merge_is_a_deep_update(base: dict[str, Any], over: dict[str, Any]) -> None:
    assert plain(merge(table(base), table(over))) == merged(base, over)


@given(a=TABLES)
def test_merge_with_nothing_or_itself_changes_nothing(a: dict[str, Any]) -> None:
    empty = Table(Mark("f"))
    for left, right in ((table(a), empty), (empty, table(a)), (table(a), table(a))):
        assert plain(merge(left, right)) == a


@given(a=TABLES, b=TABLES)
def test_what_was_laid_on_top_is_all_there(a: dict[str, Any], b: dict[str, Any]) -> None:
    once = merge(table(a), table(b))
    assert plain(merge(once, table(b))) == plain(once)
