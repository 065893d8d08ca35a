"""The text: the standard library's own sources, and conversations cut out of them.

Only what is plainly under the PSF licence is taken. A file that states terms of its own is left out,
and so are generated tables, vendored code and files that are not valid Python.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import sysconfig
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SKIPPED_DIRECTORIES = frozenset(
    {"__pycache__", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages"}
)
OWN_TERMS = re.compile(
    r"permission (is hereby granted|to use|is granted)|redistribution and use|licensed under the"
    r"|all rights reserved|disclaims all|express or implied|provided 'as[- ]is'",
    re.IGNORECASE,
)
HELDOUT_BYTES = 80_000
CALIBRATION_BYTES = 200_000
# Whole files are held out, so they must be small enough for a fair cross-section.
HELDOUT_FILE_BYTES = range(3_000, 20_000)
MAX_LINE = 300  # beyond this a line is data, not code
MAX_SHARED = 0.15  # of a held-out file's long lines, how many may occur in another file too


@dataclass(frozen=True)
class Document:
    """One source file: `name` is its path below the standard library, with forward slashes."""

    name: str
    text: str

    @property
    def is_test(self) -> bool:
        """Whether the file belongs to the library's test suite rather than to the library."""
        return not {"test", "tests"}.isdisjoint(self.name.split("/"))


@dataclass(frozen=True)
class Corpus:
    """The three parts; no file is in two of them."""

    train: tuple[Document, ...]
    calibration: tuple[Document, ...]
    heldout: tuple[Document, ...]

    def digest(self) -> str:
        """The sha256 of every part's names and texts, in order."""
        parts = [[[d.name, d.text] for d in part] for part in (self.train, self.calibration, self.heldout)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def collect(stdlib: Path | None = None) -> Corpus:
    """Read the running interpreter's standard library, or the one at `stdlib`, and divide it."""
    documents = list(_documents(stdlib or Path(sysconfig.get_path("stdlib"))))
    # An order that depends on nothing but the names, and that mixes the packages.
    shuffled = sorted(documents, key=lambda d: hashlib.sha256(d.name.encode()).digest())
    spread = Counter(line for d in documents for line in _long_lines(d))
    candidates = [
        d
        for d in shuffled
        if not d.is_test and len(d.text.encode()) in HELDOUT_FILE_BYTES and _shared(d, spread) <= MAX_SHARED
    ]
    heldout = _take(candidates, HELDOUT_BYTES)
    calibration = _take(candidates[len(heldout) :], CALIBRATION_BYTES)
    kept = {d.name for d in (*heldout, *calibration)}
    return Corpus(tuple(d for d in documents if d.name not in kept), calibration, heldout)


def conversations(documents: tuple[Document, ...], seed: int) -> list[tuple[str, str]]:
    """Pairs of a request and its answer: what a documented function says it does, and its source."""
    rng = random.Random(seed)
    forms = ("{summary}", "Write a Python function: {summary}", "Write {name}: {summary}")
    pairs = []
    for document in documents:
        if document.is_test:
            continue
        for node in ast.walk(_parse(document.text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            summary = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            source = "\n".join(document.text.splitlines()[node.lineno - 1 : node.end_lineno])
            if 20 <= len(summary) <= 300 and 80 <= len(source) <= 2_500:
                request = rng.choice(forms).format(summary=summary, name=node.name)
                pairs.append((request, textwrap.dedent(source)))
    return pairs


def _documents(stdlib: Path) -> Iterator[Document]:
    seen: set[str] = set()
    for path in sorted(stdlib.rglob("*.py")):
        name = path.relative_to(stdlib).as_posix()
        if SKIPPED_DIRECTORIES.intersection(name.split("/")):
            continue
        try:
            text = path.read_text("utf-8")
            _parse(text)
        except (SyntaxError, ValueError):  # the test suite holds files that are broken on purpose
            continue
        longest = max(map(len, text.splitlines()), default=0)
        if not text.strip() or text in seen or longest > MAX_LINE or OWN_TERMS.search(text):
            continue
        seen.add(text)
        yield Document(name, text)


def _parse(text: str) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the tests' strings
        return ast.parse(text)


def _long_lines(document: Document) -> set[str]:
    return {line for line in map(str.strip, document.text.splitlines()) if len(line) > 30}


def _shared(document: Document, spread: Counter[str]) -> float:
    """The share of the document's long lines that another document has as well."""
    lines = _long_lines(document)
    return sum(spread[line] > 1 for line in lines) / len(lines) if lines else 1.0


def _take(documents: list[Document], nbytes: int) -> tuple[Document, ...]:
    """The first documents whose sizes reach `nbytes` together."""
    taken, total = [], 0
    for document in documents:
        if total >= nbytes:
            break
        taken.append(document)
        total += len(document.text.encode())
    return tuple(taken)
