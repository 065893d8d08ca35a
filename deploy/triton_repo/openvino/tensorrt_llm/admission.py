"""Who may enter the running batch, and when.

OpenVINO GenAI answers a cache that is too small by dropping every running request, and does not
limit the number of sequences while it mixes prompts with generation. So both are decided here,
before a sequence reaches it. First come, first served: a large request at the head of the queue is
not overtaken, or it would starve.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

BLOCK_TOKENS = 32
"""Tokens in one block of the paged KV cache (fixed by OpenVINO's CPU plugin)."""

Ticket = TypeVar("Ticket")


def blocks_for(tokens: int) -> int:
    """Cache blocks that `tokens` tokens of one sequence take."""
    return -(-tokens // BLOCK_TOKENS)


class Admission(Generic[Ticket]):
    """A first-in, first-out queue in front of a batch with a limited number of seats and blocks.

    Args:
        max_sequences: sequences in the batch at one time.
        cache_blocks: blocks of the KV cache.
        guarantee: reserve a sequence's worst case on entry (`guaranteed_no_evict`); otherwise only its
            prompt (`max_utilization`), and the engine preempts and recomputes when the cache runs full.
        static: let nobody into a batch that runs: the next one starts when the last sequence has left.
    """

    def __init__(self, max_sequences: int, cache_blocks: int, guarantee: bool, static: bool = False) -> None:
        self._max_sequences = max_sequences
        self._cache_blocks = cache_blocks
        self._guarantee = guarantee
        self._static = static
        self._waiting: deque[tuple[int, int, Ticket]] = deque()
        self._reserved: dict[int, int] = {}

    @property
    def waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._waiting)

    @property
    def active(self) -> int:
        """Sequences in the batch."""
        return len(self._reserved)

    @property
    def reserved_blocks(self) -> int:
        """Blocks that the sequences in the batch have been promised."""
        return sum(self._reserved.values())

    def join(self, key: int, prompt_tokens: int, max_tokens: int, ticket: Ticket) -> None:
        """Queue a sequence. It must fit the cache when alone: the caller has refused those that do not."""
        need = blocks_for(prompt_tokens + (max_tokens if self._guarantee else 1))
        self._waiting.append((key, need, ticket))

    def admit(self) -> list[Ticket]:
        """Move what fits now from the head of the queue into the batch."""
        admitted: list[Ticket] = []
        if self._static and self._reserved:
            return admitted
        while self._waiting and len(self._reserved) < self._max_sequences:
            key, need, ticket = self._waiting[0]
            if self.reserved_blocks + need > self._cache_blocks:
                break
            self._waiting.popleft()
            self._reserved[key] = need
            admitted.append(ticket)
        return admitted

    def grow(self, key: int, tokens: int) -> None:
        """Note that a sequence now holds `tokens` tokens (never less than it was promised)."""
        self._reserved[key] = max(self._reserved[key], blocks_for(tokens))

    def leave(self, key: int) -> Ticket | None:
        """A sequence ended, or gave up: free its seat; returns its ticket when it was still waiting."""
        if self._reserved.pop(key, None) is None:
            for entry in self._waiting:
                if entry[0] == key:
                    self._waiting.remove(entry)
                    return entry[2]
        return None
