"""Check that a repository's tokenizer loads and belongs to the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def tokenizer_problems(file: Path, vocab_size: int) -> Iterator[str]:
    """Why `file`, a tokenizer.json, does not serve a model of `vocab_size` tokens."""
    from tokenizers import Tokenizer

    if not file.is_file():
        yield f"tensorrt_llm: there is no {file.name} in {file.parent}"
        return
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        yield f"the tokenizer cannot be read: {error}"
        return
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        yield f"the tokenizer has token {largest}, the model's vocabulary only {vocab_size}"
