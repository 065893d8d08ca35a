"""Follow Triton's log, and read the reason of a failure out of it."""

from __future__ import annotations

import contextlib
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import IO, NamedTuple

_LINES_KEPT = 1000
_LONGEST_LINE = 1 << 16


class LogFollower(threading.Thread):
    """Takes every line as it comes, because a log that nobody reads holds up the server.

    Args:
        source: the server's output; closed at its end.
        file: where the log is appended, if anywhere; unbuffered; closed at the end too.
        on_line: called with each line, from this thread.
    """

    def __init__(
        self, source: IO[bytes], file: IO[bytes] | None = None, on_line: Callable[[str], None] | None = None
    ) -> None:
        super().__init__(name="triton-log", daemon=True)
        self.lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._source, self._file, self._on_line = source, file, on_line
        self.start()

    def run(self) -> None:
        """Read until the server, and every process that it started, has closed the log."""
        sinks: list[Callable[[bytes, str], object]] = []
        if file := self._file:
            sinks.append(lambda raw, _: file.write(raw))
        if on_line := self._on_line:
            sinks.append(lambda _, line: on_line(line))
        with self._source as source, self._file or contextlib.nullcontext():
            while raw := source.readline(_LONGEST_LINE):
                line = raw.decode(errors="replace").rstrip("\n")
                self.lines.append(line)
                for sink in list(sinks):
                    try:
                        sink(raw, line)
                    except Exception as error:
                        sinks.remove(sink)  # a full disk, or a terminal that is gone
                        self.lines.append(f"llmbuild: the log is no longer passed on: {error}")

    def tail(self, count: int = 20) -> list[str]:
        """The last lines, without the tables that Triton draws."""
        return [line for line in list(self.lines) if line and line[0] not in "+|"][-count:]


class Failure(NamedTuple):
    """One thing that went wrong: the model, if the log names one, and the reason."""

    model: str | None
    reason: str


_LOAD = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?:[A-Z][\w ]*: )?(?P<reason>.*)")
_POLL = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<reason>.*)")
_PROTOBUF = re.compile(r"\[libprotobuf ERROR .*?\] (?P<reason>.*)")
_PLAIN = (
    re.compile(r"(?P<reason>[^ ]*: error while loading shared libraries: .*)"),
    re.compile(r"Failed to (?:pre)?initialize Python stub: (?P<reason>.*)"),
    re.compile(r"(?P<reason>(?:unrecognized|ambiguous) option .*|option .* requires an argument)"),
    re.compile(r"(?P<reason>failed to start \w+ service: .*)"),
    re.compile(r"(?P<reason>Unable to initialize shared memory key .*)"),
    re.compile(r"error: (?:creating server: )?(?:[A-Z][\w ]* - )?(?P<reason>.*)"),
)
_SUMMARY = "failed to load all models"
_CONSEQUENCE = re.compile(r"depends on .* which has no loaded version|is not healthy")
_DIED = "its process died: a crash, or the machine ran out of memory"


def failures(lines: Iterable[str]) -> list[Failure]:
    """What went wrong, causes first; the same reason is told once, with the model where that is known.

    A reason is the message of the exception and, for a Python model, the place that raised it.
    """
    found: list[Failure] = []
    protobuf = ""
    for line in lines:
        if match := _PROTOBUF.search(line):
            protobuf = match["reason"]
        elif match := _POLL.search(line):
            found.append(Failure(match["model"], f"{_tidy(match['reason'])}: {protobuf}".rstrip(": ")))
        elif match := _LOAD.search(line):
            found.append(Failure(match["model"], _tidy(match["reason"])))
        else:
            matches = (pattern.search(line) for pattern in _PLAIN)
            found += [Failure(None, _tidy(match["reason"])) for match in matches if match][:1]
    named = [failure.reason for failure in found if failure.model]
    distinct = dict.fromkeys(f for f in found if f.model or not any(r.startswith(f.reason) for r in named))
    causes = [f for f in distinct if f.reason != _SUMMARY] or list(distinct)
    return sorted(causes, key=lambda failure: _CONSEQUENCE.search(failure.reason) is not None)


def _tidy(quoted: str) -> str:
    r"""`ValueError: no\n\nAt:\n  model.py(6): run\n"` becomes `ValueError: no (model.py(6): run)`."""
    message, _, trace = quoted.strip().removesuffix('"').replace("\\n", "\n").partition("\n\nAt:\n")
    message = " ".join(message.split())
    if message.endswith("is not healthy."):
        message = f"{message} ({_DIED})"
    place = trace.strip().splitlines()[0].strip() if trace.strip() else ""
    return f"{message} ({place})" if place else message
