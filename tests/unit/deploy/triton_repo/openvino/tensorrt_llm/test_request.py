from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from request import ENSEMBLE_NAMES, Defaults, InvalidRequestError, Limits, parse_request

from deploy import tensors

LIMITS = Limits(vocab_size=100, max_seq_len=64, max_prompt_len=40, cache_blocks=2, max_sequences=4)
DEFAULTS = Defaults(end_ids=(7, 8), pad_id=7, exclude_input_in_output=True)


def parse(limits: Limits = LIMITS, **values: Any) -> Any:
    given: dict[str, Any] = {"input_ids": [[1, 2, 3]], "input_lengths": [3], "request_output_len": [10]}
    tensors = {name: np.asarray(value) for name, value in (given | values).items() if value is not None}
    return parse_request(tensors, limits, DEFAULTS)


def test_defaults_are_upstreams() -> None:
    (sequence,) = parse().sequences
    assert not sequence.sample
    assert sequence.end_ids == (7, 8)
    assert (sequence.seed, sequence.repetition_penalty, sequence.min_tokens) == (0, 1.0, 0)
    assert not parse().streaming


@pytest.mark.parametrize(
    ("values", "sample"),
    [
        ({"temperature": [0.7]}, False),
        ({"runtime_top_k": [1], "runtime_top_p": [0.9]}, False),
        ({"runtime_top_k": [40]}, True),
        ({"runtime_top_k": [0], "runtime_top_p": [0.9]}, True),
        ({"runtime_top_k": [40], "temperature": [0.0]}, False),
    ],
)
def test_when_it_samples(values: dict[str, Any], sample: bool) -> None:
    assert parse(**values).sequences[0].sample is sample


def test_rows_and_return_sequences() -> None:
    parsed = parse(
        input_ids=[[1, 2, 3], [4, 5, 0]],
        input_lengths=[[3], [2]],
        request_output_len=[[10], [20]],
        num_return_sequences=[2, 2],
        seed=np.array([5, 2**64 - 1], np.uint64),
        end_id=[-1, 9],
    )
    assert [s.prompt for s in parsed.sequences] == [[1, 2, 3], [1, 2, 3], [4, 5], [4, 5]]
    assert [s.max_tokens for s in parsed.sequences] == [10, 10, 20, 20]
    assert [s.seed for s in parsed.sequences] == [5, 6, 2**64 - 1, 0]
    assert [s.end_ids for s in parsed.sequences] == [(), (), (9,), (9,)]


def test_stop_words_are_unpacked() -> None:
    packed = [[[11, 12, 13, 0], [2, 3, -1, -1]]]
    assert parse(stop_words_list=packed).sequences[0].stop_words == ((11, 12), (13,))
    assert parse(stop_words_list=np.empty((1, 2, 0))).sequences[0].stop_words == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_ids": None}, r"input_ids \(text_input\) is missing"),
        ({"input_lengths": None}, "input_lengths is missing"),
        ({"request_output_len": None}, "request_output_len .* is missing"),
        ({"request_output_len": [62]}, "together more than max_seq_len, which is 64"),
        (
            {"input_ids": [[1] * 41], "input_lengths": [41]},
            r"input_lengths \(tokens of text_input\) is 41: a prompt may have 40",
        ),
        ({"stop_words_list": [[[5, 6], [2, 1]]]}, "in rising order"),
        ({"stop_words_list": [[[500], [1]]]}, r"stop_words_list \(stop_words\) is 500: the vocabulary"),
        ({"stop_words_list": [[5, 6]]}, r"its shape must be \[batch, 2, n\]"),
        ({"temperature": [0.5, 0.6]}, r"temperature is \[2\]: one value for each of 1 prompt"),
        ({"temperature": [float("inf")]}, "temperature is inf: must be a finite number"),
        ({"runtime_top_p_decay": [0.5]}, "this engine has no top-p decay"),
        ({"num_return_sequences": [0]}, "num_return_sequences is 0"),
        ({"num_return_sequences": [5]}, "must be 1 to 4"),
    ],
)
def test_what_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        parse(**values)


def test_what_can_never_fit_the_cache_is_refused() -> None:
    tight = Limits(vocab_size=100, max_seq_len=4096, max_prompt_len=4095, cache_blocks=2, max_sequences=4)
    assert parse(tight, request_output_len=[61]).sequences[0].max_tokens == 61
    with pytest.raises(InvalidRequestError, match="more than the KV cache holds, which is 64 tokens"):
        parse(tight, request_output_len=[62])


def test_rows_may_not_disagree_on_what_shapes_the_response() -> None:
    with pytest.raises(InvalidRequestError, match="must be the same for all prompts"):
        parse(
            input_ids=[[1], [2]],
            input_lengths=[1, 1],
            request_output_len=[1, 1],
            streaming=[True, False],
        )


def test_absent_features_pass_when_they_ask_for_nothing() -> None:
    parse(bad_words_list=np.empty((1, 2, 0)), return_context_logits=[False], embedding_bias=np.empty((1, 0)))


def test_errors_name_the_ensembles_inputs() -> None:
    renamed = {theirs: ours for theirs, ours in tensors.STRAIGHT_TO_ENGINE.items() if theirs != ours}
    del renamed["len_penalty"]  # without effect here, so never wrong
    assert renamed.items() <= ENSEMBLE_NAMES.items()
    known = {tensor.name for tensor in tensors.TEXT_INPUTS}
    assert {name.removeprefix("tokens of ") for name in ENSEMBLE_NAMES.values()} <= known
    assert ENSEMBLE_NAMES.keys() <= {tensor.name for tensor in tensors.ENGINE_INPUTS}
