"""Axes and histograms."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.report.svg import Axis, histogram, lines, percent


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


def test_a_legend_takes_as_many_lines_as_its_names_need() -> None:
    axis = Axis.to("x", 1, percent)
    names = [f"a target with a long name, number {number}" for number in range(4)]
    drawn = lines(axis, axis, {name: [(0.0, 0.0), (1.0, 1.0)] for name in names}, size=(600, 300))
    places = [
        (float(x), float(y), text)
        for x, y, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">(a target[^<]*)', drawn)
    ]
    assert [text for *_, text in places] == names
    assert len({y for _, y, _ in places}) > 1
    assert all(x + 7.2 * len(text) < 600 for x, _, text in places)
    height = float(re.search(r'viewBox="0 0 600 ([\d.]+)"', drawn).group(1))  # type: ignore[union-attr]
    assert all(y < height for _, y, _ in places)
