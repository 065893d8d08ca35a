"""Speculative decoding gives what the target alone gives, whatever the draft guesses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from speculation import speculate

Tensors = dict[str, np.ndarray]
VOCABULARY = 7


def outputs(tokens: list[int]) -> Tensors:
    ids = np.array([[tokens]], dtype=np.int32).reshape(1, 1, -1)
    logits = np.repeat(ids[..., None].astype(np.float32), VOCABULARY, axis=3)
    return {"output_ids": ids, "sequence_length": np.array([[len(tokens)]]), "generation_logits": logits}


def target_of(
    continuation: list[int], prompt_length: int, end_id: int | None
) -> Callable[[Tensors], Tensors]:
    """A model whose greedy answer is `continuation`; it tells accepted tokens and one more."""

    def run(given: Tensors) -> Tensors:
        begin = given["input_ids"].shape[1] - prompt_length
        draft = given["draft_input_ids"][0].tolist() if "draft_input_ids" in given else []
        assert given["request_output_len"].flat[0] == len(draft) + 1
        assert bool(given["exclude_input_in_output"].flat[0])
        assert "streaming" not in given
        if "draft_logits" in given:
            assert given["draft_logits"].shape == (1, len(draft), VOCABULARY)
        new: list[int] = []
        for token in continuation[begin:]:
            if token == end_id:
                break
            new.append(token)
            if len(new) > len(draft) or draft[len(new) - 1] != token:
                break
        return outputs(new)

    return run


def ask(prompt: list[int], **more: Any) -> Tensors:
    return {
        "input_ids": np.array([prompt], dtype=np.int32),
        "input_lengths": np.array([[len(prompt)]], dtype=np.int32),
    } | {name: np.array(value, dtype=np.int32) for name, value in more.items()}


tokens = st.integers(0, VOCABULARY - 1)


@given(
    prompt=st.lists(tokens, min_size=1, max_size=4),
    answer=st.lists(tokens, min_size=30, max_size=30),
    guesses=st.lists(st.lists(tokens, max_size=5), min_size=30, max_size=30),
    right=st.lists(st.integers(0, 5), min_size=30, max_size=30),
    drafts=st.integers(1, 5),
    limit=st.integers(1, 25),
    end_id=st.none() | tokens,
    stop_word=st.none() | st.lists(tokens, min_size=1, max_size=3),
    use_draft_logits=st.booleans(),
)
def test_whatever_the_draft_guesses(
    prompt: list[int], answer: list[int], guesses: list[list[int]], right: list[int], drafts: int, limit: int,
    end_id: int | None, stop_word: list[int] | None, use_draft_logits: bool,
) -> None:  # fmt: skip
    rounds = 0

    def draft(given: Tensors) -> Tensors:
        nonlocal rounds
        begin, count = given["input_ids"].shape[1] - len(prompt), int(given["request_output_len"].flat[0])
        guess = (answer[begin : begin + right[rounds]] + guesses[rounds])[:count]
        rounds += 1
        return outputs(guess)

    asked = ask(prompt, request_output_len=[[limit]], streaming=[[1]])
    if end_id is not None:
        asked["end_id"] = np.array([[end_id]], dtype=np.int32)
    if stop_word is not None:
        ends = [len(stop_word)] + [-1] * (len(stop_word) - 1)
        asked["stop_words_list"] = np.array([[stop_word, ends]], dtype=np.int32)
    pieces = speculate(
        asked,
        target=target_of(answer, len(prompt), end_id),
        draft=draft,
        num_draft_tokens=drafts,
        use_draft_logits=use_draft_logits,
    )
    told = [token for piece in pieces for token in piece["output_ids"][0, 0].tolist()]
    assert told == alone(prompt, answer, limit, end_id, stop_word)


def alone(
    prompt: list[int], answer: list[int], limit: int, end_id: int | None, stop_word: list[int] | None
) -> list[int]:
    """What the target answers without a draft."""
    told: list[int] = []
    for token in answer[:limit]:
        if token == end_id:
            break
        told.append(token)
        if stop_word is not None and (prompt + told)[-len(stop_word) :] == stop_word:
            break
    return told
