"""Figures from records, held against numpy and against arithmetic by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench.figures import distribution, summarize
from deploy.bench.load import Record


def answered(sent: float, responses: list[float], tokens: int, inputs: int | None = 10) -> Record:
    return Record(tokens, sent, 0.0, inputs, tokens, True, responses, is_done=True)


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=60))
def test_a_distribution_is_numpys(values: list[float]) -> None:
    found = distribution(values)
    assert found is not None
    assert found["mean"] == pytest.approx(np.mean(values))
    assert found["std"] == pytest.approx(np.std(values), abs=1e-6)
    for percent in (50, 90, 95, 99):
        assert found[f"p{percent}"] == pytest.approx(np.quantile(values, percent / 100))
    assert distribution([]) is None


def test_the_figures_of_two_requests_by_hand() -> None:
    records = [answered(1.0, [1.5, 2.0, 3.0], 5), answered(2.0, [2.25, 5.0], 3)]
    figures = summarize(records, {"ttft_s": 0.3})
    assert figures["duration_s"] == 4.0
    assert figures["output_tokens_per_s"] == 2.0
    assert figures["input_tokens_per_s"] == 5.0
    assert figures["requests_per_s"] == 0.5
    assert figures["ttft_s"]["mean"] == 0.375
    assert figures["e2e_s"]["max"] == 3.0
    assert figures["tpot_s"]["min"] == 1.5 / 4
    assert figures["tpot_s"]["max"] == 2.75 / 2
    assert figures["itl_s"]["count"] == 3
    assert figures["goodput_requests_per_s"] == 0.25
    assert figures["good_share"] == 0.5


def test_failed_and_unfinished_requests_count_as_that_only() -> None:
    failed = Record(5, 0.0, error="the queue is full", is_done=True)
    unfinished = Record(5, 0.0, responses_s=[0.1])
    figures = summarize([answered(1.0, [1.5], 1, None), failed, failed, unfinished])
    assert (figures["answered"], figures["failed"], figures["unfinished"]) == (1, 2, 1)
    assert figures["errors"] == {"the queue is full": 2}
    assert figures["duration_s"] == 0.5
    assert figures["tpot_s"] is None
    assert figures["input_tokens_per_s"] is None


def test_nothing_answered_gives_no_rates() -> None:
    figures = summarize([Record(5, 0.0, error="no", is_done=True)], {"ttft_s": 1.0})
    assert figures["output_tokens_per_s"] is None
    assert figures["goodput_requests_per_s"] is None
    assert figures["ttft_s"] is None
