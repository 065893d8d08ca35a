"""Facts that change with other people's releases: YAML tables, read through `load_table`."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

# libyaml's parser is ten times as fast, where PyYAML was built with it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@cache
def load_table(name: str) -> dict[str, Any]:
    """The table `toolchain/data/<name>.yaml`. Callers must not modify it."""
    text = (Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")
    table: dict[str, Any] = yaml.load(text, _LOADER)
    return table
