"""A resolved recipe as YAML, written so that `load_recipe` reads the same values back."""

from __future__ import annotations

import yaml

from toolchain.recipe.scalars import ambiguity, resolve
from toolchain.recipe.schema import Recipe


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever either YAML version would not read as text, and never uses anchors."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    # Unprintable characters need escapes: unescaped, YAML turns some line breaks into others.
    clear = resolve(text) == text and ambiguity(text) is None and text.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if clear else '"')


def _list(dumper: yaml.SafeDumper, values: tuple[object, ...]) -> yaml.Node:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(tuple, _list)


def dump_recipe(recipe: Recipe) -> str:
    """`recipe` as YAML with every field written out, defaults too; it loads to an equal recipe anywhere."""
    data = recipe.model_dump(by_alias=True)
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10_000)
