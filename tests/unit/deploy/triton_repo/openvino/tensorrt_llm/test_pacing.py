from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pacing import LONGEST_S, MOST_TOKENS, RESPONSE_S, SENDER_SHARE, SHARE, smoothed, tokens_per_response

STREAMS = st.integers(0, 1024)
STEPS = st.floats(0.0001, 10)
CORES = st.integers(1, 256)


@pytest.mark.parametrize(
    ("streams", "step_ms", "tokens"),
    [
        (1, 7, 4),
        (1, 30, 1),
        (8, 20, 8),
        (32, 36, 8),
        (32, 70, 4),  # no response waits longer than 300 ms
        (1, 1, 8),
        (0, 8, 1),
        (32, 200, 1),  # a large model: the wait counts
        (1, 0, 1),  # no step was measured yet
    ],
)
def test_tokens_per_response_on_two_cores(streams: int, step_ms: float, tokens: int) -> None:
    assert tokens_per_response(streams, step_ms / 1000, 2) == tokens


@given(STREAMS, STEPS, CORES)
def test_responses_are_cheap_or_as_rare_as_they_may_be(streams: int, step_s: float, cores: int) -> None:
    tokens = tokens_per_response(streams, step_s, cores)
    assert 1 <= tokens <= MOST_TOKENS
    assert tokens == 1 or tokens * step_s <= LONGEST_S
    cost = streams * RESPONSE_S / tokens
    cheap = cost <= step_s * min(SHARE * cores, SENDER_SHARE) * 1.0001
    assert cheap or tokens == MOST_TOKENS or (tokens + 1) * step_s > LONGEST_S * 0.9999


@given(STREAMS, STEPS, CORES)
def test_more_cores_and_fewer_streams_never_make_responses_rarer(
    streams: int, step_s: float, cores: int
) -> None:
    tokens = tokens_per_response(streams, step_s, cores)
    assert tokens_per_response(streams, step_s, cores + 1) <= tokens
    assert tokens_per_response(max(0, streams - 1), step_s, cores) <= tokens


def test_the_average_begins_with_the_first_step_and_follows_the_latest() -> None:
    average = smoothed(0.0, 0.5)
    assert average == 0.5
    for _ in range(100):
        average = smoothed(average, 0.01)
    assert average == pytest.approx(0.01, rel=0.01)
