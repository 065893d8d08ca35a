"""Which method each unit gets: the least of one quantity within a budget of another, exactly.

A multiple-choice knapsack. Every unit has options with a cost and a weight; one of each is taken, so that the
weights keep to a limit and the costs sum to the least. The budget in bytes has errors for costs and bytes for
weights; the budget in error has them the other way round.

Partial choices are extended unit by unit. One is dropped when another is no heavier and costs no more, or
when a bound says that no completion of it beats the best choice known: costs plus a price times weights, each
unit taking its best at that price. With the price of the linear relaxation few partial choices survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Option = tuple[float, float]
"""A cost and a weight."""

# Partial choices kept at a time. Beyond it the least promising go, and the answer may not be the very best.
_MOST_STATES = 1 << 18


@dataclass(frozen=True)
class Choice:
    """One option of each unit.

    Args:
        options: their indices.
        cost, weight: their sums.
        exact: whether nothing cheaper keeps to the limit.
    """

    options: tuple[int, ...]
    cost: float
    weight: float
    exact: bool = True


def cheapest(units: Sequence[Sequence[Option]], limit: float) -> Choice | None:
    """The choice of least cost whose weight is at most `limit`; None where there is none."""
    if sum(min(weight for _, weight in options) for options in units) > limit:
        return None
    limit = min(limit, sum(max(weight for _, weight in options) for options in units))
    price, first = _relaxed(units, limit)
    least_weight = _suffix_sums([min(weight for _, weight in options) for options in units])
    least_priced = _suffix_sums([min(c + price * w for c, w in options) for options in units])

    costs, weights = np.zeros(1), np.zeros(1)
    steps: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    exact = True
    for number, options in enumerate(units):
        offered = np.array(options, dtype=np.float64)
        cost_SO = costs[:, None] + offered[:, 0]
        weight_SO = weights[:, None] + offered[:, 1]
        bound_SO = cost_SO + least_priced[number + 1] + price * (weight_SO - limit)
        alive = (weight_SO + least_weight[number + 1] <= limit) & (bound_SO < first.cost)
        state, option = np.nonzero(alive)
        costs, weights, bounds = cost_SO[alive], weight_SO[alive], bound_SO[alive]
        kept = _undominated(costs, weights)
        if len(kept) > _MOST_STATES:
            kept = kept[np.argsort(bounds[kept], kind="stable")[:_MOST_STATES]]
            exact = False
        costs, weights = costs[kept], weights[kept]
        steps.append((state[kept], option[kept]))
        if not len(kept):  # nothing beats what the relaxation gave
            return Choice(first.options, first.cost, first.weight, exact)
    at = int(np.lexsort((weights, costs))[0])
    return _choice(units, _traced(steps, at), exact)


def _relaxed(units: Sequence[Sequence[Option]], limit: float) -> tuple[float, Choice]:
    """The price of weight in the linear relaxation, and a good choice from the same steps.

    From the lightest options on, the units go along their lower convex hulls, the best bargain first.
    """
    hulls = [_hull(options) for options in units]
    places = [0] * len(units)
    weight = sum(units[unit][hull[0]][1] for unit, hull in enumerate(hulls))
    bargains = sorted(
        (-(units[unit][a][0] - units[unit][b][0]) / (units[unit][b][1] - units[unit][a][1]), unit, place)
        for unit, hull in enumerate(hulls)
        for place, (a, b) in enumerate(pairwise(hull))
    )
    price, stuck = 0.0, set[int]()
    for gain, unit, place in bargains:
        hull = hulls[unit]
        more = units[unit][hull[place + 1]][1] - units[unit][hull[place]][1]
        if unit in stuck or weight + more > limit:
            if not stuck:
                price = -gain
            stuck.add(unit)
            continue
        weight += more
        places[unit] = place + 1
    return price, _choice(units, [hull[place] for hull, place in zip(hulls, places, strict=True)])


def _hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull, from the lightest on; each costs less than the one before."""
    hull: list[int] = []
    for at in sorted(range(len(options)), key=lambda at: (options[at][1], options[at][0])):
        cost, weight = options[at]
        if hull and (cost >= options[hull[-1]][0] or weight == options[hull[-1]][1]):
            continue
        while len(hull) > 1:
            (c0, w0), (c1, w1) = options[hull[-2]], options[hull[-1]]
            if (c0 - c1) * (weight - w0) > (c0 - cost) * (w1 - w0):
                break
            hull.pop()
        hull.append(at)
    return hull


def _undominated(costs: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the states that no other is both no heavier and no dearer than, lightest first."""
    order = np.lexsort((costs, weights))
    least = np.minimum.accumulate(costs[order])
    better = np.ones(len(order), dtype=bool)
    better[1:] = costs[order][1:] < least[:-1]
    kept: NDArray[np.intp] = order[better]
    return kept


def _suffix_sums(values: Sequence[float]) -> NDArray[np.float64]:
    """Entry i is the sum of values i and after; the last entry is 0."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _traced(steps: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]], at: int) -> list[int]:
    options = []
    for state, option in reversed(steps):
        options.append(int(option[at]))
        at = int(state[at])
    return options[::-1]


def _choice(units: Sequence[Sequence[Option]], options: Sequence[int], exact: bool = True) -> Choice:
    taken = [unit[option] for unit, option in zip(units, options, strict=True)]
    return Choice(tuple(options), sum(c for c, _ in taken), sum(w for _, w in taken), exact)
