"""Lengths of prompts and answers."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.bench.lengths import Lengths
from toolchain.errors import UsageError


@given(low=st.integers(1, 500), more=st.integers(0, 500), seed=st.integers(0, 99))
def test_uniform_lengths_stay_within_both_ends(low: int, more: int, seed: int) -> None:
    source = random.Random(seed)
    lengths = Lengths.parse(f"uniform:{low}:{low + more}")
    assert all(low <= lengths.draw(source) <= low + more for _ in range(50))


def test_uniform_lengths_reach_both_ends() -> None:
    source = random.Random(1)
    assert {Lengths.parse("uniform:3:5").draw(source) for _ in range(200)} == {3, 4, 5}


def test_normal_lengths_have_the_mean_and_deviation_and_are_never_empty() -> None:
    source = random.Random(2)
    drawn = [Lengths.parse("normal:200:30").draw(source) for _ in range(4000)]
    assert np.mean(drawn) == pytest.approx(200, abs=3)
    assert np.std(drawn) == pytest.approx(30, abs=2)
    assert min(Lengths.parse("normal:1:50").draw(source) for _ in range(100)) == 1


@pytest.mark.parametrize("text", ["128", "uniform:64:192", "normal:128:32"])
def test_prints_as_it_is_given(text: str) -> None:
    assert str(Lengths.parse(text)) == text


@pytest.mark.parametrize("text", ["", "0", "-4", "1.5", "uniform:9:3", "normal:0:1", "zipf:3", "9" * 30])
def test_refuses_what_is_no_length(text: str) -> None:
    with pytest.raises(UsageError, match="no length"):
        Lengths.parse(text)
