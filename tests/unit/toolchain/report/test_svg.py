"""Axes and histograms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.report.svg import Axis, histogram, percent


@given(high=st.floats(1e-9, 1e9), count=st.integers(1, 12))
def test_an_axis_reaches_its_highest_value_in_round_steps(high: float, count: int) -> None:
    axis = Axis.to("x", high, percent, count=count)
    assert axis.high >= high * (1 - 1e-6)
    assert 2 <= len(axis.ticks) <= count + 1
    assert axis.ticks[-1] == axis.high
    step = axis.ticks[1]
    assert float(f"{step:.2g}") == pytest.approx(step)


@given(st.integers(1, 200))
def test_whole_numbers_have_few_ticks(count: int) -> None:
    axis = Axis.of_numbers("layer", count)
    assert 1 <= len(axis.ticks) <= 16
    assert all(axis.low < tick < axis.high for tick in axis.ticks)


@given(st.lists(st.floats(0, 1), max_size=40))
def test_a_histogram_counts_every_value_once(values: list[float]) -> None:
    parts = histogram(values, 0, 1, 7)
    assert sum(height for _, _, height in parts) == len(values)
    for low, high, height in parts[1:-1]:
        assert height == pytest.approx(sum(low <= value < high for value in values), abs=1)
