"""Token ids to text, one token at a time, never half a character.

`Detokenizer` looks at the tokenizer once; each sequence gets its own `stream()`. The text of the
pieces, concatenated, is what decoding all the tokens at once gives (behind the prompt).
"""

from __future__ import annotations

import codecs
import json
from typing import Protocol

from tokenizers import Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream(Protocol):
    """Text of one sequence, growing token by token."""

    def push(self, token: int) -> str:
        """The text that became certain with this token; empty inside a character."""

    def finish(self) -> str:
        """What was held back of a character that never became whole, as replacement characters."""


class Detokenizer:
    """Makes text streams for one tokenizer.

    Args:
        tokenizer: a Hugging Face fast tokenizer.
        skip_special_tokens: leave the text of special tokens (end of text, ...) out.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._bytes = _ByteAlphabet(tokenizer, skip_special_tokens) if _is_byte_level(tokenizer) else None

    def stream(self, prompt: list[int]) -> TextStream:
        """A stream of the text that follows `prompt`."""
        if self._bytes is not None:
            return _ByteStream(self._bytes)
        return _WindowStream(self._tokenizer, self._skip_special_tokens, prompt)

    def decode(self, tokens: list[int]) -> str:
        """The text of all the tokens at once."""
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip_special_tokens)


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    """Whether tokens are spelled in GPT-2's alphabet of bytes and nothing else happens in decoding."""
    decoder = tokenizer.decoder
    return decoder is not None and json.loads(decoder.__getstate__())["type"] == "ByteLevel"


class _ByteAlphabet:
    """The bytes of each token of a byte-level tokenizer (Llama 3, Qwen, GPT-2, ...), looked up once."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, bytes] = {}
        if skip_special_tokens:
            added = tokenizer.get_added_tokens_decoder().items()
            self._pieces = {token: b"" for token, content in added if content.special}
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self._alphabet = {chr(byte): byte for byte in printable}
        self._alphabet |= {chr(256 + index): byte for index, byte in enumerate(others)}

    def piece(self, token: int) -> bytes:
        piece = self._pieces.get(token)
        if piece is None:
            # An id beyond the tokenizer's vocabulary (models pad theirs) has no text.
            spelling = self._tokenizer.id_to_token(token) or ""
            try:
                piece = bytes(self._alphabet[char] for char in spelling)
            except KeyError:  # an added token, spelled as it reads
                piece = spelling.encode()
            self._pieces[token] = piece
        return piece


class _ByteStream:
    """Exact and cheap: bytes through an incremental UTF-8 decoder."""

    def __init__(self, alphabet: _ByteAlphabet) -> None:
        self._alphabet = alphabet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._alphabet.piece(token))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowStream:
    """Any other decoder: decode the last piece of text with and without the new token.

    A window over whole pieces never begins inside a character, and gives the new token a neighbour, so
    that the space before its word is not lost; the first neighbours are the end of the prompt. While the
    text ends in a replacement character the next token may complete it: wait, but no longer than a few
    tokens, beyond which the bytes are broken for good.
    """

    _CONTEXT = 6
    _LONGEST_WAIT = 8

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._window = prompt[-self._CONTEXT :]
        while self._decode(self._window).startswith(REPLACEMENT):
            del self._window[0]
        self._read = len(self._window)  # tokens of the window whose text is out

    def push(self, token: int) -> str:
        self._window.append(token)
        text = self._new_text()
        waited = len(self._window) - self._read
        if not text or (text.endswith(REPLACEMENT) and waited < self._LONGEST_WAIT):
            return ""
        del self._window[: self._read]
        self._read = len(self._window)
        return text

    def finish(self) -> str:
        return self._new_text()

    def _new_text(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._read])) :]

    def _decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=self._skip)
