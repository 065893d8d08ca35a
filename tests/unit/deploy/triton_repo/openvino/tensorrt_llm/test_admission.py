from __future__ import annotations

from admission import Admission, blocks_for
from hypothesis import given
from hypothesis import strategies as st


def test_blocks_are_rounded_up() -> None:
    assert [blocks_for(tokens) for tokens in (0, 1, 32, 33)] == [0, 1, 1, 2]


def test_seats_are_limited_and_order_is_kept() -> None:
    queue: Admission[str] = Admission(max_sequences=2, cache_blocks=100, guarantee=True)
    for key, name in enumerate("abc"):
        queue.join(key, 10, 10, name)
    assert queue.admit() == ["a", "b"]
    assert (queue.active, queue.waiting) == (2, 1)
    assert queue.leave(0) is None
    assert queue.admit() == ["c"]


def test_a_large_request_is_not_overtaken() -> None:
    queue: Admission[str] = Admission(max_sequences=9, cache_blocks=4, guarantee=True)
    queue.join(0, 32, 32, "two blocks")
    queue.join(1, 32, 64, "three blocks")
    queue.join(2, 16, 16, "one block")
    assert queue.admit() == ["two blocks"]
    queue.leave(0)
    assert queue.admit() == ["three blocks", "one block"]


def test_without_the_guarantee_only_the_prompt_counts_and_then_growth() -> None:
    queue: Admission[str] = Admission(max_sequences=9, cache_blocks=4, guarantee=False)
    queue.join(0, 31, 1000, "a")
    assert queue.admit() == ["a"]
    assert queue.reserved_blocks == 1
    queue.grow(0, 97)
    assert queue.reserved_blocks == 4
    queue.join(1, 1, 1, "b")
    assert queue.admit() == []


def test_a_waiting_request_can_give_up() -> None:
    queue: Admission[str] = Admission(max_sequences=1, cache_blocks=4, guarantee=True)
    queue.join(0, 1, 1, "a")
    queue.join(1, 1, 1, "b")
    queue.admit()
    assert queue.leave(1) == "b"
    assert queue.waiting == 0
    assert queue.leave(7) is None


REQUESTS = st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), max_size=20)


@given(requests=REQUESTS, seats=st.integers(1, 5), data=st.data())
def test_promises_never_exceed_the_cache_and_everyone_is_served(
    requests: list[tuple[int, int]], seats: int, data: st.DataObject
) -> None:
    queue: Admission[int] = Admission(seats, cache_blocks=8, guarantee=True)
    for key, (prompt, output) in enumerate(requests):
        queue.join(key, prompt, output, key)
    served: list[int] = []
    active: list[int] = []
    while queue.waiting or active:
        active += queue.admit()
        assert queue.reserved_blocks <= 8
        assert queue.active == len(active) <= seats
        leaving = active.pop(data.draw(st.integers(0, len(active) - 1)))
        queue.leave(leaving)
        served.append(leaving)
    assert sorted(served) == list(range(len(requests)))
