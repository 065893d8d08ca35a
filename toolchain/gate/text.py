"""Held-out text, as windows of tokens.

Forms of a dataset file, by suffix:
    .jsonl  one JSON object a line, with `text`; the records end to end;
    other   UTF-8 text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.errors import ModelError, UsageError, file_error
from toolchain.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_DEFAULT = 2048
"""Tokens of a window where nothing is said, unless the model's context is shorter."""


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
    path: Path,
    model_dir: Path,
    *,
    vocab_size: int,
    context: int,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
) -> Windows:
    """Cut the text of `path` into windows, encoded by the model's tokenizer without special tokens.

    What does not fill a last window is left out.

    Args:
        path: the text.
        model_dir: whose `tokenizer.json` encodes it.
        vocab_size: of the model.
        context: the model's `max_position_embeddings`.
        window: tokens in a window; by default LONGEST_DEFAULT, or the context if that is shorter.
        stride: tokens from window to window; by default they do not overlap.
        limit: take this many windows, from the beginning of the text; by default all.

    Raises:
        UsageError: window or stride do not suit the model; a text that cannot be read, is malformed, or
            does not fill a window.
        ModelError: the tokenizer cannot be loaded, or is not that of the model.
    """
    import torch

    length = window if window is not None else min(LONGEST_DEFAULT, context)
    step = stride if stride is not None else length
    _check(length, step, context)
    ids = _encode(_read(path), model_dir)
    if len(ids) < length:
        raise UsageError(
            f"the held-out text is too short: {len(ids)} tokens do not fill a window of {length}",
            where=str(path),
            fix="add text, or take a smaller window",
        )
    if max(ids) >= vocab_size:
        raise ModelError(
            f"the tokenizer makes token {max(ids)}, but the model's vocabulary ends at {vocab_size - 1}",
            where=str(model_dir),
            fix="restore the tokenizer.json that belongs to the model",
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


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            "the held-out text is not UTF-8",
            where=str(path),
            why=f"byte {error.start} is 0x{error.object[error.start]:02x}",
            fix=f"convert it: iconv -f latin1 -t utf-8 {path.name}",
        ) from None
    except OSError as error:
        raise file_error(error, "read the held-out text") from None
    if path.suffix == ".jsonl":
        lines = text.removesuffix("\n").split("\n")
        return "".join(_record(line, f"{path}:{number}") for number, line in enumerate(lines, start=1))
    return text


def _record(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            "the line is not JSON", where=where, why=str(error), fix='write {"text": "..."}'
        ) from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise UsageError("the record has no text", where=where, fix='write {"text": "..."}')
    return str(record["text"])


def _encode(text: str, model_dir: Path) -> list[int]:
    tokenizer = load_tokenizer(model_dir)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return list(tokenizer.encode(text, add_special_tokens=False).ids)
