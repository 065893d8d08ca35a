"""Read the reason of a failure out of Triton's log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple


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
