"""A page of one file: its style, its frame, its tables. Nothing is loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH = 1080
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem;
       background: light-dark(#fff, #16181b); color: light-dark(#1b1d21, #e4e6ea); }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 0.2rem; }
p { margin: 0 0 0.6rem; max-width: 50rem; } .pair { display: flex; gap: 40px; flex-wrap: wrap; }
table { border-collapse: collapse; } th, td { padding: 0.2rem 1.2rem 0.2rem 0; text-align: left; }
th { font-weight: 600; border-bottom: 1px solid #8888; } .number { text-align: right; }
td.number { font-variant-numeric: tabular-nums; }
td.words, th.words { text-align: left; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font: 13px system-ui, sans-serif; fill: currentColor; }
.line { fill: none; stroke-width: 1.5; opacity: 0.7; }
.grid { stroke: currentColor; opacity: 0.15; } .axis { stroke: currentColor; opacity: 0.6; }
code { font-family: ui-monospace, monospace; font-size: 0.92em; }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The whole page; `parts` are HTML."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """All columns are numbers but those of `words`."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = ("words" if number in words else "number" for number in range(len(row)))
        return "".join(
            f'<{tag} class="{kind}">{escape(cell)}</{tag}>' for kind, cell in zip(kinds, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><tr>{cells('th', columns)}</tr>{body}</table>"
