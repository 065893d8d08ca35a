"""Stop words: where a generated text ends, and what must wait until that is known.

A stop word is a sequence of tokens (upstream's `stop_words_list`) and, where it has a text, that text.
It matches when the output ends with those tokens, or when its text appears, however the model
spelled it in tokens. The output ends before the stop word. Tokens that may be the beginning of a stop
word are held back until they are known not to be.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """One generated token with its log-probability and the text that became certain with it."""

    token: int
    log_prob: float
    text: str


@dataclass(frozen=True)
class StopWord:
    """`tokens` as the request gave them; `text` is empty for a special token."""

    tokens: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Cut:
    """Where a stop word begins: `pieces` whole pieces, then `text` of the piece that it splits."""

    pieces: int
    text: str


class StopMatcher:
    """Watches one sequence for its stop words."""

    def __init__(self, words: list[StopWord]) -> None:
        self._words = words
        self._texts = [word.text for word in words if word.text]
        self._sequences = [word.tokens for word in words]
        self._held: list[Piece] = []

    def push(self, piece: Piece) -> tuple[list[Piece], str, bool]:
        """Take the next piece; returns pieces to let out, text to let out after them, whether it stopped."""
        self._held.append(piece)
        cut = self._match()
        if cut is not None:
            out, self._held = self._held[: cut.pieces], []
            return out, cut.text, True
        keep = self._undecided()
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out, "", False

    def finish(self) -> list[Piece]:
        """What was held back, when the sequence ends for another reason."""
        out, self._held = self._held, []
        return out

    def _match(self) -> Cut | None:
        cuts = [self._cut_at(position) for position in self._text_positions()]
        tokens = tuple(piece.token for piece in self._held)
        cuts += [self._cut_before(word) for word in self._words if tokens[-len(word.tokens) :] == word.tokens]
        return min(cuts, key=lambda cut: (cut.pieces, len(cut.text)), default=None)

    def _cut_before(self, word: StopWord) -> Cut:
        """Where the word begins whose tokens are the last ones."""
        whole = len(self._held) - len(word.tokens)
        text = "".join(piece.text for piece in self._held[whole:])
        if word.text and text.endswith(word.text) and text != word.text:
            # The first piece begins with what became of bytes that were held back before it.
            before = sum(len(piece.text) for piece in self._held[:whole])
            return self._cut_at(before + len(text) - len(word.text))
        return Cut(whole, "")

    def _text_positions(self) -> list[int]:
        text = "".join(piece.text for piece in self._held)
        return [position for position in (text.find(word) for word in self._texts) if position >= 0]

    def _cut_at(self, position: int) -> Cut:
        for index, piece in enumerate(self._held):
            if position < len(piece.text):
                return Cut(index, piece.text[:position])
            position -= len(piece.text)
        raise AssertionError("a match lies inside the held text")

    def _undecided(self) -> int:
        """How many of the last pieces may be the beginning of a stop word."""
        tokens = tuple(piece.token for piece in self._held)
        keep = max((_overlap(tokens, sequence) for sequence in self._sequences), default=0)
        text = "".join(piece.text for piece in self._held)
        waiting = max((_overlap(text, word) for word in self._texts), default=0)
        count = 0
        while waiting > 0:
            count += 1
            waiting -= len(self._held[-count].text)
        return max(keep, count)


def _overlap(seen: str | tuple[int, ...], word: str | tuple[int, ...]) -> int:
    """Length of the longest proper beginning of `word` with which `seen` ends."""
    for length in range(min(len(seen), len(word) - 1), 0, -1):
        if seen[-length:] == word[:length]:
            return length
    return 0
