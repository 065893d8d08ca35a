"""The tokenizer info that TensorRT-LLM's guided decoding with xgrammar reads: one JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tokenizer_info(tokenizer_dir: Path, end_ids: Sequence[int]) -> dict[str, Any]:
    """The vocabulary in order of ids, as the tokenizer writes tokens, and the tokenizer itself.

    Ids that the tokenizer leaves out get names that no text encodes to, so that a token's place is its id.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    by_id = {index: token for token, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    vocabulary = [by_id.get(index, f"<|unused_{index}|>") for index in range(max(by_id, default=-1) + 1)]
    return {
        "encoded_vocab": vocabulary,
        "tokenizer_str": tokenizer.to_str(),
        "stop_token_ids": list(end_ids),
    }
