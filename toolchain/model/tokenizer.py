"""The model's own tokenizer, from its `tokenizer.json`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """The fast tokenizer in `model_dir`. Raises ModelError when it cannot be loaded."""
    from tokenizers import Tokenizer

    file = model_dir / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        raise ModelError(
            "the tokenizer cannot be loaded",
            where=str(file),
            why=str(error),
            fix="fetch the model's tokenizer.json again",
        ) from None
