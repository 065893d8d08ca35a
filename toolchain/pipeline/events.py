"""What shows the progress of a build: a live bar on a terminal, plain lines in a log, JSON for programs."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from toolchain.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import Task, TaskID

_LINE_EVERY = 10.0  # seconds between two lines about the same work
_JSON_EVERY = 1.0


@contextlib.contextmanager
def show_progress(stream: TextIO | None = None, *, as_json: bool = False) -> Iterator[Progress]:
    """The `Progress` that fits where it is read: `stream`, which is standard error by default."""
    stream = stream or sys.stderr
    if as_json:
        yield JsonLines(stream)
    elif stream.isatty():
        with _live(stream) as live:
            yield live
    else:
        yield Lines(stream)


class Lines:
    """Plain lines for a log: the start, then one every ten seconds at most, and the end."""

    def __init__(self, stream: TextIO, every: float = _LINE_EVERY) -> None:
        self._stream, self._every = stream, every
        self._label = self._unit = ""
        self._total = self._done = self._at_start = 0
        self._started = self._written = time.monotonic()

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        """Announce the work."""
        self._label, self._unit = label, unit
        self._total, self._done, self._at_start = total, done, done
        self._started = time.monotonic()
        self._write()

    def advance(self, amount: int = 1) -> None:
        """Count, and say so when it is time."""
        unfinished = self._done < self._total
        self._done += amount
        is_due = time.monotonic() - self._written >= self._every
        if unfinished and (is_due or self._done >= self._total):
            self._write()

    def note(self, text: str) -> None:
        """Print the line."""
        print(text, file=self._stream, flush=True)

    def _write(self) -> None:
        self._written = time.monotonic()
        elapsed = self._written - self._started
        so_far = describe_amount(self._done, self._total, self._unit)
        line = f"{self._label}: {so_far}, {describe_duration(elapsed)}"
        advanced = self._done - self._at_start
        if advanced > 0 and self._done < self._total:
            line += f", about {describe_duration(elapsed / advanced * (self._total - self._done))} left"
        self.note(line)


class JsonLines:
    """One JSON object a line: `{"event": "start" | "progress" | "note", ...}`, progress once a second."""

    def __init__(self, stream: TextIO, every: float = _JSON_EVERY) -> None:
        self._stream, self._every = stream, every
        self._work: dict[str, Any] = {"label": "", "unit": "", "total": 0, "done": 0}
        self._written = 0.0

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        """Emit `start`."""
        self._work = {"label": label, "unit": unit, "total": total, "done": done}
        self._emit("start", self._work)

    def advance(self, amount: int = 1) -> None:
        """Emit `progress` when it is time, and at the end."""
        self._work["done"] += amount
        is_due = time.monotonic() - self._written >= self._every
        if is_due or self._work["done"] == self._work["total"]:
            self._emit("progress", self._work)

    def note(self, text: str) -> None:
        """Emit `note`."""
        self._emit("note", {"text": text})

    def _emit(self, event: str, fields: dict[str, Any]) -> None:
        self._written = time.monotonic()
        print(json.dumps({"event": event, **fields}), file=self._stream, flush=True)


class Live:
    """A bar on a terminal, with the elapsed time and an estimate of the rest."""

    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        """Show a bar in place of the one before."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(label, total=total, completed=done, unit=unit)

    def advance(self, amount: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._bars.advance(self._task, amount)

    def note(self, text: str) -> None:
        """Print the line above the bar."""
        self._bars.console.print(text, markup=False, highlight=False)


@contextlib.contextmanager
def _live(stream: TextIO) -> Iterator[Live]:
    # Rich takes 50 ms to import; only a terminal has a use for it.
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class AmountColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(describe_amount(int(task.completed), int(task.total or 0), task.fields["unit"]))

    with RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        AmountColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(file=stream),
        transient=True,
        redirect_stdout=False,  # it carries the result, which is nobody's progress
        refresh_per_second=4,
    ) as bars:
        yield Live(bars)


def describe_amount(done: int, total: int, unit: str) -> str:
    """Progress in words: "3/32 layers", "1.2/9.3 GB"."""
    if unit != "bytes":
        return f"{done}/{total} {unit}"
    power = next((power for power in (3, 2, 1) if total >= 1000**power), 0)
    scale, name = 1000**power, ("B", "kB", "MB", "GB")[power]
    return f"{done / scale:.1f}/{total / scale:.1f} {name}" if power else f"{done}/{total} {name}"


def describe_duration(seconds: float) -> str:
    """A time span in words: "7 s", "3 min 5 s", "2 h 10 min"."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
