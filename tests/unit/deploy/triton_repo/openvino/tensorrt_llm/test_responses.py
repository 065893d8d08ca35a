from __future__ import annotations

import numpy as np
from messages import Chunk
from request import Defaults, Limits, parse_request
from responses import Answer, Times, merge

LIMITS = Limits(vocab_size=100, max_seq_len=64, max_prompt_len=40, cache_blocks=2, max_sequences=4)
DEFAULTS = Defaults(end_ids=(7,), pad_id=7, exclude_input_in_output=True)
STATISTICS = frozenset({"num_input_tokens", "num_output_tokens"})


def answer(prompts: list[list[int]], returns: int, streaming: bool) -> Answer:
    column = np.ones((len(prompts), 1), bool)
    request = parse_request(
        {
            "input_ids": np.array([prompt + [0] * (3 - len(prompt)) for prompt in prompts]),
            "input_lengths": np.array([[len(prompt)] for prompt in prompts]),
            "request_output_len": column * 10,
            "num_return_sequences": column * returns,
            "return_num_input_tokens": column,
            "return_num_output_tokens": column,
            "streaming": column & streaming,
        },
        LIMITS,
        DEFAULTS,
    )
    return Answer(request, STATISTICS, Times(arrival=0))


def chunk(tokens: int, finish: str | None = "length") -> Chunk:
    return Chunk(0, [1] * tokens, [0.0] * tokens, "x" * tokens, finish=finish)


def counts(outputs: dict[str, np.ndarray], name: str) -> list[list[int]]:
    return outputs[name].tolist()


def test_a_whole_answer_counts_all_the_sequences_of_a_prompt() -> None:
    one = answer([[1, 2, 3]], 2, False).whole([chunk(10), chunk(4)], 0)
    assert counts(one, "num_output_tokens") == [[14]]
    assert counts(one, "num_input_tokens") == [[3]]
    chunks = [chunk(1), chunk(2), chunk(3), chunk(4)]
    two = answer([[1, 2, 3], [4]], 2, False).whole(chunks, 0)
    assert counts(two, "num_output_tokens") == [[3], [7]]
    assert counts(two, "num_input_tokens") == [[3], [1]]
    rows = answer([[1, 2, 3], [4]], 1, False).whole([chunk(1), chunk(2)], 0)
    assert counts(rows, "num_output_tokens") == [[1], [2]]


def test_a_streamed_sequence_counts_its_own_tokens_at_its_end() -> None:
    streamed = answer([[1, 2, 3]], 2, True)
    assert streamed.piece(1, chunk(3, None), 0) == {}
    assert counts(streamed.piece(0, chunk(4), 0), "num_output_tokens") == [[4]]
    assert counts(streamed.piece(1, chunk(2), 0), "num_output_tokens") == [[5]]


def test_merged_chunks_are_one_piece_of_the_sequence() -> None:
    merged = merge(chunk(2, None), chunk(3, "stop"))
    assert (merged.tokens, merged.text, merged.finish) == ([1] * 5, "x" * 5, "stop")
