"""The choice within a budget, against every choice there is."""

from __future__ import annotations

import random
import time
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from quantize.search.choice import cheapest

UNITS = st.lists(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=4),
    min_size=1,
    max_size=5,
)


@given(units=UNITS, limit=st.integers(0, 90))
def test_nothing_cheaper_keeps_to_the_limit(units: list[list[tuple[float, float]]], limit: int) -> None:
    sums = [[sum(values) for values in zip(*taken, strict=True)] for taken in product(*units)]
    within = [cost for cost, weight in sums if weight <= limit]
    found = cheapest(units, limit)
    if not within:
        assert found is None
        return
    assert found is not None
    assert found.exact
    taken = [unit[option] for unit, option in zip(units, found.options, strict=True)]
    assert found.cost == sum(cost for cost, _ in taken) == min(within)
    assert found.weight == sum(weight for _, weight in taken) <= limit


def test_a_model_of_80_layers_takes_moments() -> None:
    """Bytes of a 70B model's units in three methods; errors spread over two orders of magnitude."""
    drawn = random.Random(0)
    units = []
    for _layer in range(80):
        for weights in (10240 * 8192, 8192 * 8192, 2 * 28672 * 8192, 8192 * 28672):
            error = 10 ** drawn.uniform(-5, -3)
            units.append(
                [(error, weights * 4.25 / 8), (error * drawn.uniform(0.02, 0.1), weights), (0.0, weights * 2)]
            )
    limit = sum(unit[0][1] for unit in units) * 1.3
    started = time.perf_counter()
    found = cheapest(units, limit)
    assert time.perf_counter() - started < 10
    assert found is not None
    assert found.exact
    assert 0.999 * limit < found.weight <= limit


def test_options_of_no_use_are_never_taken() -> None:
    found = cheapest([[(5, 10), (5, 12), (1, 20)], [(3, 1), (4, 2)]], 100)
    assert found is not None
    assert found.options == (2, 0)
