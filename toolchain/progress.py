"""The Protocol through which long work tells how far it is. Who shows it is not the worker's concern."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the progress of one piece of long work."""

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        """Begin: `total` units of work lie ahead, of which `done` were finished by an earlier run."""

    def advance(self, amount: int = 1) -> None:
        """`amount` more units are finished."""

    def note(self, text: str) -> None:
        """Say one line that a user would want to read."""


class Silent:
    """A `Progress` that nobody watches."""

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        """Ignore it."""

    def advance(self, amount: int = 1) -> None:
        """Ignore it."""

    def note(self, text: str) -> None:
        """Ignore it."""
