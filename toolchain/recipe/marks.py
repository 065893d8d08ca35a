"""Where a value of a recipe was written, and problems that show the place."""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.errors import LlmbuildError, UsageError

# `str(error)` writes "  why: " before the first line; the YAML line goes under it.
_INDENT = " " * 7
_WIDTH = 96


@dataclass(frozen=True)
class Mark:
    """A place in a file, or in a `--set` argument.

    Args:
        origin: the file as the user would name it, or the whole override.
        line: line from 1; 0 in an override, which has no lines.
        column: column from 1.
        text: that line.
    """

    origin: str
    line: int = 0
    column: int = 0
    text: str = ""

    def __str__(self) -> str:
        return f"{self.origin}:{self.line}:{self.column}" if self.line else self.origin

    def excerpt(self) -> str:
        """The line with a caret under the column, indented; empty where there is no line."""
        if not self.text.strip():
            return ""
        start = max(0, self.column - _WIDTH // 2) if len(self.text) > _WIDTH else 0
        text = "".join(c if c.isprintable() else " " for c in self.text[start : start + _WIDTH])
        gutter = f"{self.line} | "
        caret = " " * (len(gutter) - 2) + "| " + " " * (self.column - 1 - start) + "^"
        return f"\n{_INDENT}{gutter}{text.rstrip()}\n{_INDENT}{caret}"


def problem(what: str, mark: Mark, *, why: str, fix: str) -> LlmbuildError:
    """One problem of a recipe: `why` is followed by the YAML line, where there is one."""
    return UsageError(what, where=str(mark), why=why + mark.excerpt(), fix=fix)


def shown(value: object) -> str:
    """A value as a message shows it: YAML's words for what YAML has words for, never long, never raw."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, str):
        return "the text " + quoted(value)
    return f"the number {str(value)[:40]}"


def quoted(text: str) -> str:
    """`text` in quotes, with anything unprintable escaped and the middle of a long one left out."""
    if len(text) > 64:
        text = text[:40] + "..." + text[-20:]
    return "'" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "'"
