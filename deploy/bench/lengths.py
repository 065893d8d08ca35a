"""How many tokens prompts and answers have: fixed, uniform or normal."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from toolchain.errors import UsageError

_LARGEST = 10_000_000


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths.

    Args:
        kind: "fixed", "uniform" or "normal".
        first: the length, the smallest one, or the mean.
        second: the largest one (which is drawn too), or the standard deviation.
    """

    kind: str
    first: float
    second: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Read `128`, `uniform:64:192` or `normal:128:32`.

        Raises:
            UsageError: it is none of the three, or the numbers make no sense.
        """
        if re.fullmatch(r"\d+", text):
            lengths = cls("fixed", int(text))
        elif found := re.fullmatch(r"uniform:(\d+):(\d+)", text):
            lengths = cls("uniform", int(found[1]), int(found[2]))
        elif found := re.fullmatch(r"normal:(\d+(?:\.\d+)?):(\d+(?:\.\d+)?)", text):
            lengths = cls("normal", float(found[1]), float(found[2]))
        else:
            raise UsageError(
                f"{text!r} is no length", fix="give a number, uniform:LOW:HIGH or normal:MEAN:DEVIATION"
            )
        too_short = lengths.first < 1
        if too_short or max(lengths.first, lengths.second) > _LARGEST:
            raise UsageError(f"{text!r} is no length of a text", why=f"tokens are 1 to {_LARGEST}")
        if lengths.kind == "uniform" and lengths.second < lengths.first:
            raise UsageError(f"{text!r} has no lengths in it", fix="give the smaller one first")
        return lengths

    def draw(self, source: random.Random) -> int:
        """One length, at least 1."""
        if self.kind == "fixed":
            return int(self.first)
        if self.kind == "uniform":
            return source.randint(int(self.first), int(self.second))
        return max(1, round(source.gauss(self.first, self.second)))

    def __str__(self) -> str:
        numbers = f"{self.first:g}" if self.kind == "fixed" else f"{self.first:g}:{self.second:g}"
        return numbers if self.kind == "fixed" else f"{self.kind}:{numbers}"
