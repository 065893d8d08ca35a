"""The model's own tokenizer, from its `tokenizer.json`: what the server encodes with as well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """The fast tokenizer in `model_dir`, which neither cuts nor pads. Raises ModelError if it has none."""
    from tokenizers import Tokenizer

    file = model_dir / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelError(
            "the tokenizer cannot be loaded",
            where=str(file),
            why=str(error),
            fix="fetch the model's tokenizer.json again",
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def start_tokens(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer puts before every text: BOS if it has the habit, mostly."""
    encoding = tokenizer.encode("a")
    added = list(encoding.special_tokens_mask)
    return list(encoding.ids[: added.index(0)]) if 0 in added else []


def check_vocabulary(ids: Sequence[int], tokenizer: Tokenizer, vocab_size: int, model_dir: Path) -> None:
    """Make sure that the model knows every token. Raises ModelError."""
    largest = max(ids, default=0)
    if largest >= vocab_size:
        raise ModelError(
            f"token {largest} ({tokenizer.id_to_token(largest)!r}) lies outside the model's vocabulary, "
            f"which ends at {vocab_size - 1}",
            where=str(model_dir / "tokenizer.json"),
            why="the tokenizer in the model's directory is not the model's own",
            fix="restore the tokenizer files that belong to the model",
        )
