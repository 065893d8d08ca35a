"""The text of a sequence whose tokens come in pieces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

UNFINISHED = "\ufffd"
"""What a tokenizer decodes the first bytes of a character to."""


class TextSoFar:
    """Decodes the tokens of one sequence as they come; no character or space is lost between two pieces.

    A token's text depends on those before it, so each piece is decoded together with the one before. Text
    that ends in the middle of a character is held back until the rest of it has come.

    Args:
        decode: [batch, beams, length] tokens and [batch, beams] lengths to [batch, beams] texts, bytes.
    """

    def __init__(self, decode: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._before = 0  # where the context of the next piece begins
        self._told = 0  # tokens whose text has been told

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Add a piece: [1, 1, length] tokens, of which the first [1, 1] `lengths` count."""
        self._tokens += tokens[0, 0, : int(lengths.flat[0])].tolist()

    def new(self) -> np.ndarray:
        """The text that has not been told, [1, 1]; empty while it ends in the middle of a character."""
        told, text = self._pair()
        if len(text) <= len(told) or text.endswith(UNFINISHED):
            return np.array([[b""]], dtype=object)
        self._before, self._told = self._told, len(self._tokens)
        return np.array([[text[len(told) :].encode()]], dtype=object)

    def held_back(self) -> str:
        """The text that `new` has not told, whole or not."""
        if self._told == len(self._tokens):
            return ""
        told, text = self._pair()
        return text[len(told) :]

    def all(self) -> np.ndarray:
        """The whole text, [1, 1]."""
        ids = np.array([[self._tokens]], dtype=np.int32)
        return self._decode(ids, np.array([[len(self._tokens)]], dtype=np.int32))

    def _pair(self) -> tuple[str, str]:
        """The text of the context alone, and with the tokens that have not been told."""
        recent = self._tokens[self._before :]
        ids = np.array([[recent, recent]], dtype=np.int32)
        lengths = np.array([[self._told - self._before, len(recent)]], dtype=np.int32)
        told, text = (part.decode() for part in self._decode(ids, lengths)[0])
        return told, text
