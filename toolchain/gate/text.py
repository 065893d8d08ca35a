"""Held-out text, as windows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.errors import DataError, UsageError
from toolchain.model.tokenizer import check_vocabulary, load_tokenizer
from toolchain.text.documents import Documents
from toolchain.text.files import TextFiles

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_DEFAULT = 2048
"""Tokens of a window where nothing is said, unless the model's context is shorter."""

# Documents that are read together, characters in a piece of plain text, and characters a token at first.
_TOGETHER, _PIECE, _CHARACTERS = 1024, 1 << 16, 8

# Tokens that a text is encoded beyond those wanted: where it is cut, it may be encoded in another way.
_MARGIN = 1024


@dataclass(frozen=True)
class Windows:
    """Token windows, and which of their tokens are predicted from what comes before them.

    Each token of the text is predicted once: a window skips those that the window before it held.

    Attributes:
        tokens: int64 [windows, length].
        stride: tokens from the beginning of a window to that of the next.
    """

    tokens: Tensor
    stride: int

    def first_predicted(self, window: int) -> int:
        """Index of the first token of `window` that is predicted; all after it are as well."""
        return 1 if window == 0 else max(1, self.tokens.shape[1] - self.stride)

    @property
    def predicted(self) -> int:
        """How many tokens are predicted, in all windows together."""
        count, length = self.tokens.shape
        return sum(length - self.first_predicted(window) for window in range(count))


def load_windows(
    text: TextFiles,
    model_dir: Path,
    *,
    vocab_size: int,
    context: int,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
) -> Windows:
    """Cut a text into windows, encoded by the model's tokenizer without special tokens.

    The documents of all files are put end to end, with nothing between them. What does not fill a last
    window is left out. With a `limit`, no more is read than it needs.

    Args:
        text: the text.
        model_dir: whose `tokenizer.json` encodes it.
        vocab_size: of the model.
        context: the model's `max_position_embeddings`.
        window: tokens in a window; by default LONGEST_DEFAULT, or the context if that is shorter.
        stride: tokens from window to window; by default they do not overlap.
        limit: take this many windows, from the beginning of the text; by default all.

    Raises:
        UsageError: window or stride do not suit the model.
        DataError: the text cannot be read, is malformed, or does not fill a window.
        ModelError: the tokenizer cannot be loaded, or is not that of the model.
    """
    import torch

    length = window if window is not None else min(LONGEST_DEFAULT, context)
    step = stride if stride is not None else length
    _check(length, step, context)
    wanted = None if limit is None else length + (limit - 1) * step
    ids = _encode(text, model_dir, wanted, vocab_size)
    if len(ids) < length:
        raise DataError(
            f"the held-out text is too short: {len(ids)} tokens do not fill a window of {length}",
            where=text.name,
            fix="add text, or take a smaller window",
        )
    tokens = torch.tensor(ids, dtype=torch.int64).unfold(0, length, step)[:limit]
    return Windows(tokens.contiguous(), step)


def _check(length: int, stride: int, context: int) -> None:
    if not 2 <= length <= context:
        raise UsageError(
            f"a window of {length} tokens does not suit the model",
            why=f"it must hold at least 2 tokens and at most the model's context of {context}",
            fix=f"set the window to {min(LONGEST_DEFAULT, context)}",
        )
    if not 1 <= stride <= length:
        raise UsageError(
            f"a stride of {stride} tokens does not suit a window of {length}",
            why="a longer stride would skip text between the windows",
            fix=f"set the stride to {length}, or to less for windows that overlap",
        )


def _encode(text: TextFiles, model_dir: Path, wanted: int | None, vocab_size: int) -> list[int]:
    """The first `wanted` tokens of the text, or all that there are."""
    tokenizer = load_tokenizer(model_dir)
    documents = Documents(text, model_dir, piece=_PIECE)
    parts: list[str] = []
    held, read = 0, 0  # characters, documents
    needed = None if wanted is None else _CHARACTERS * (wanted + _MARGIN)
    while True:
        while read < len(documents) and (needed is None or held < needed):
            numbers = range(read, min(read + _TOGETHER, len(documents)))
            parts += documents.read(numbers)
            held = sum(map(len, parts))
            read = numbers.stop
        ids = list(tokenizer.encode("".join(parts), add_special_tokens=False).ids)
        if wanted is None or read == len(documents) or len(ids) >= wanted + _MARGIN:
            break
        needed = 2 * held
    ids = ids[:wanted]
    check_vocabulary(ids, tokenizer, vocab_size, model_dir)
    return ids
