"""Text that comes in pieces is the text of the whole."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_so_far import TextSoFar
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Tokenizer:
    """One token a byte: every character beyond ASCII comes in several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.fixture(scope="module")
def words_tokenizer() -> Tokenizer:
    """As SentencePiece: a word's token holds the space before it, which is not told at a beginning."""
    words = ["▁a", "▁bc", "d", "▁", "."]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def decode_with(tokenizer: Tokenizer) -> Any:
    def decode(tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        texts = np.empty(lengths.shape, dtype=object)
        for index in np.ndindex(lengths.shape):
            texts[index] = tokenizer.decode(tokens[index][: lengths[index]].tolist()).encode()
        return texts

    return decode


def told(tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> tuple[str, Any]:
    """All that `new` tells of `ids` cut at `cuts`, and the object."""
    text = TextSoFar(decode_with(tokenizer))
    pieces = []
    bounds = [0, *sorted(cut % (len(ids) + 1) for cut in cuts), len(ids)]
    for begin, end in itertools.pairwise(bounds):
        piece = np.array([[ids[begin:end]]], dtype=np.int32).reshape(1, 1, -1)
        text.add(piece, np.array([[end - begin]]))
        pieces.append(text.new()[0, 0].decode())
    return "".join(pieces), text


@given(st.text(max_size=20), st.lists(st.integers(0, 100), max_size=8))
def test_no_character_is_cut(bytes_tokenizer: Tokenizer, content: str, cuts: list[int]) -> None:
    ids = bytes_tokenizer.encode(content).ids
    whole, text = told(bytes_tokenizer, ids, cuts)
    assert whole + text.held_back() == bytes_tokenizer.decode(ids)
    assert text.all()[0, 0].decode() == bytes_tokenizer.decode(ids)


@given(st.lists(st.integers(0, 4), max_size=12), st.lists(st.integers(0, 100), max_size=8))
def test_no_space_is_lost(words_tokenizer: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    whole, text = told(words_tokenizer, ids, cuts)
    assert whole + text.held_back() == words_tokenizer.decode(ids)


def test_the_beginning_of_a_character_is_held_back(bytes_tokenizer: Tokenizer) -> None:
    ids = bytes_tokenizer.encode("é").ids
    whole, text = told(bytes_tokenizer, ids[:1], [])
    assert (whole, text.held_back()) == ("", "\ufffd")
    text.add(np.array([[ids[1:]]], dtype=np.int32), np.array([[1]]))
    assert text.new()[0, 0].decode() == "é"
    assert text.held_back() == ""
