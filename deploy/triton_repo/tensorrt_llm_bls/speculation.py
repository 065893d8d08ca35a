"""Speculative decoding with a draft model: it guesses tokens, the target accepts or corrects them.

The target's engine is built for it (`--speculative_decoding_mode draft_tokens_external`, `--max_draft_len`);
both keep their KV caches between rounds only with block reuse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Tensors = dict[str, np.ndarray]

NOT_FOR_ROUNDS = ("return_context_logits", "return_generation_logits", "streaming")
"""A round's logits would not be the answer's, and a round is one response."""


def speculate(
    inputs: Tensors,
    *,
    target: Callable[[Tensors], Tensors],
    draft: Callable[[Tensors], Tensors],
    num_draft_tokens: int,
    use_draft_logits: bool,
) -> Iterator[Tensors]:
    """Yield the target's outputs of each round, `output_ids` [1, 1, new] and `sequence_length` [1, 1].

    Together they are what the target alone would answer when it decodes greedily.

    Args:
        inputs: of the engine, for one prompt and one sequence.
        target, draft: run the models on such inputs.
        num_draft_tokens: tokens guessed a round, at most.
        use_draft_logits: give the target the draft's logits, so that it accepts by probability.
    """
    base = {name: array for name, array in inputs.items() if name not in NOT_FOR_ROUNDS}
    base["exclude_input_in_output"] = np.ones((1, 1), dtype=bool)
    tokens = inputs["input_ids"][0, : int(inputs["input_lengths"].flat[0])].tolist()
    left = int(inputs["request_output_len"].flat[0])
    stop_words = _words(inputs.get("stop_words_list"))
    if "end_id" in inputs:
        stop_words.append([int(inputs["end_id"].flat[0])])
    while left > 0:
        guess: list[int] = []
        given = base | _prompt(tokens)
        if (count := min(num_draft_tokens, left - 1)) > 0:
            wants = given | {"request_output_len": np.array([[count]], dtype=np.int32)}
            if use_draft_logits:
                wants["return_generation_logits"] = np.ones((1, 1), dtype=bool)
            drafted = draft(wants)
            guess = _new_tokens(drafted)[:count]
            if guess:
                given["draft_input_ids"] = np.array([guess], dtype=np.int32)
                if use_draft_logits and "generation_logits" in drafted:
                    given["draft_logits"] = drafted["generation_logits"][0, :, : len(guess)].reshape(
                        1, len(guess), -1
                    )
        given["request_output_len"] = np.array([[len(guess) + 1]], dtype=np.int32)
        outputs = target(given)
        new = _new_tokens(outputs)[:left]
        # The target goes one token beyond what it accepts, unless that is where the sequence ends.
        ended = not new or new == guess[: len(new)]
        if (length := _first_end(tokens, new, stop_words)) is not None:
            new, ended = new[:length], True
        tokens, left = tokens + new, left - len(new)
        yield outputs | {
            "output_ids": np.array([[new]], dtype=np.int32),
            "sequence_length": np.array([[len(new)]], dtype=np.int32),
        }
        if ended:
            return


def _prompt(tokens: list[int]) -> Tensors:
    return {
        "input_ids": np.array([tokens], dtype=np.int32),
        "input_lengths": np.array([[len(tokens)]], dtype=np.int32),
    }


def _new_tokens(outputs: Tensors) -> list[int]:
    return outputs["output_ids"][0, 0, : int(outputs["sequence_length"].flat[0])].tolist()


def _first_end(tokens: list[int], new: list[int], words: list[list[int]]) -> int | None:
    """How many of the `new` tokens there are up to the end of the first stop word; None without one."""
    every = tokens + new
    for length in range(1, len(new) + 1):
        end = len(tokens) + length
        if any(every[max(0, end - len(word)) : end] == word for word in words):
            return length
    return None


def _words(packed: np.ndarray | None) -> list[list[int]]:
    """The words of a [1, 2, n] list: all tokens in a row, and where each word ends (-1: no more)."""
    if packed is None:
        return []
    tokens, ends = packed[0].tolist()
    ends = [end for end in ends if end > 0]
    return [tokens[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
