"""Reading JSON that somebody else wrote: parse errors with a way out, typed look-ups."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolchain.errors import ModelError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a Git LFS pointer file begins: what a clone holds in place of a large file that was not fetched."""

REQUIRED = object()
"""Default of a field that must be there."""

# Beyond these nothing is a size or a factor of a model; within them arithmetic cannot overflow.
_LARGEST_INTEGER = 2**31 - 1
_LARGEST_NUMBER = 1e18


def lfs_pointer_error(path: Path) -> ModelError:
    """The error for a Git LFS pointer that stands where content was expected."""
    return ModelError(
        "this is a Git LFS pointer, not the file itself",
        where=str(path),
        why="the repository was cloned without fetching its large files",
        fix=f"run `git lfs pull` in {path.parent}, or download the file again",
    )


def read_json_object(path: Path, *, fix: str | None = None) -> dict[str, Any]:
    """The JSON object in `path`. Raises ModelError when it is absent, unreadable or not a JSON object."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {path.name}: {error.strerror}", where=str(path), fix=fix) from None
    if content.startswith(LFS_POINTER):
        raise lfs_pointer_error(path)
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path.name} is not valid JSON", where=str(path), why=str(error), fix=fix) from None
    if not isinstance(value, dict):
        raise ModelError(
            f"{path.name} must hold a JSON object, not {type(value).__name__}", where=str(path), fix=fix
        )
    return value


class Fields:
    """Typed look-ups in one JSON object.

    A look-up that fails records a problem and returns a stand-in with which arithmetic stays defined,
    so that one pass finds every problem; the caller raises once, when all fields were read. JSON null
    counts as absent.
    """

    def __init__(self, values: Mapping[str, Any], problems: list[str], prefix: str = "") -> None:
        self.values, self.problems, self.prefix = values, problems, prefix

    def problem(self, name: str, text: str) -> None:
        """Record that field `name` is wrong; `text` completes the sentence."""
        self.problems.append(f"{self.prefix}{name} {text}")

    def _get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            self.problem(name, "is missing")
            return None
        return default

    def integer(
        self, name: str, default: Any = REQUIRED, *, minimum: int = 1, maximum: int = _LARGEST_INTEGER
    ) -> int:
        """An integer from `minimum` to `maximum`."""
        value = self._get(name, default)
        if value is None:
            return max(minimum, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            self.problem(name, f"must be an integer from {minimum} to {maximum}, not {value!r}")
            return max(minimum, 1)
        return value

    def optional_integer(self, name: str, *, minimum: int = 1) -> int | None:
        """An integer from `minimum` on, or None when absent."""
        return None if self.values.get(name) is None else self.integer(name, minimum=minimum)

    def number(self, name: str, default: Any = REQUIRED, *, above: float = 0.0) -> float:
        """A number greater than `above`."""
        value = self._get(name, default)
        if value is None:
            return above + 1.0
        if not _is_number(value, above):
            self.problem(name, f"must be a number greater than {above:g}, not {value!r}")
            return above + 1.0
        return float(value)

    def optional_number(self, name: str, *, above: float = 0.0) -> float | None:
        """A number greater than `above`, or None when absent."""
        return None if self.values.get(name) is None else self.number(name, above=above)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            self.problem(name, f"must be true or false, not {value!r}")
            return default
        return value

    def text(self, name: str, default: Any = REQUIRED) -> str:
        """A string."""
        value = self._get(name, default)
        if value is None:
            return ""
        if not isinstance(value, str):
            self.problem(name, f"must be a string, not {value!r}")
            return ""
        return value

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        """A required list of `length` positive numbers."""
        value = self._get(name, REQUIRED)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) != length:
            found = f"{len(value)} entries" if isinstance(value, list) else repr(value)
            self.problem(name, f"must be a list of {length} numbers, not {found}")
            return ()
        if not all(_is_number(item, above=0.0) for item in value):
            self.problem(name, "must hold only positive numbers")
            return ()
        return tuple(float(x) for x in value)

    def mapping(self, name: str) -> dict[str, Any]:
        """A JSON object; empty when absent."""
        value = self._get(name, {})
        if not isinstance(value, dict):
            self.problem(name, f"must be a JSON object, not {value!r}")
            return {}
        return value


def _is_number(value: Any, above: float) -> bool:
    # bool is a kind of int to Python, not to JSON. NaN fails both comparisons.
    return isinstance(value, int | float) and not isinstance(value, bool) and above < value <= _LARGEST_NUMBER
