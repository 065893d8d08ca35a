"""From what the engine reports to the tensors of Triton responses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from messages import Chunk
from request import ParsedRequest

Outputs = dict[str, np.ndarray]

TEXT_OUTPUT = "text_output"
FINISH_REASON = "finish_reason"


@dataclass
class Times:
    """Nanoseconds of the monotonic clock; upstream's perf metrics."""

    arrival: int
    first_scheduled: int = 0


@dataclass
class Answer:
    """The answer to one request: which outputs are wanted, and what is known so far.

    `wanted` are the output names that the client (or the ensemble) asked for: only those are made,
    because every tensor of every streamed response costs time.
    """

    request: ParsedRequest
    wanted: frozenset[str]
    times: Times
    cum_log_probs: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cum_log_probs = [0.0] * len(self.request.sequences)
        self.counts = [0] * len(self.request.sequences)

    def piece(self, index: int, chunk: Chunk, time_ns: int) -> Outputs:
        """One streamed response: the new tokens of sequence `index`; shapes [1, 1, ...]."""
        self.counts[index] += len(chunk.tokens)
        self.cum_log_probs[index] += sum(chunk.log_probs)
        outputs: Outputs = {}
        if TEXT_OUTPUT in self.wanted:
            outputs[TEXT_OUTPUT] = np.array([[chunk.text.encode()]], dtype=object)
        if "output_ids" in self.wanted:
            outputs["output_ids"] = np.array([[chunk.tokens]], dtype=np.int32)
        if "sequence_length" in self.wanted:
            outputs["sequence_length"] = np.array([[len(chunk.tokens)]], dtype=np.int32)
        if len(self.request.sequences) > 1:
            batch, returned = divmod(index, self.request.returns)
            outputs["batch_index"] = np.array([[batch]], dtype=np.int32)
            outputs["sequence_index"] = np.array([[returned]], dtype=np.int32)
        if self.request.log_probs:
            outputs["output_log_probs"] = np.array([[chunk.log_probs]], dtype=np.float32)
            outputs["cum_log_probs"] = np.array([[self.cum_log_probs[index]]], dtype=np.float32)
        if chunk.finish is not None:
            outputs[FINISH_REASON] = np.array([[chunk.finish.encode()]], dtype=object)
            outputs |= self._statistics([index], 1, [chunk], time_ns)
        return {name: tensor for name, tensor in outputs.items() if name in self.wanted}

    def whole(self, chunks: list[Chunk], time_ns: int) -> Outputs:
        """The one response of a request that does not stream; shapes [batch, returns, ...].

        Shorter sequences are padded with the pad id; `sequence_length` tells how much is real. The
        prompt leads where the request wants its input in the output.
        """
        request = self.request
        shape = (request.batch, request.returns)
        ids = [chunk.tokens for chunk in chunks]
        if not request.exclude_input:
            ids = [sequence.prompt + new for sequence, new in zip(request.sequences, ids, strict=True)]
        self.counts = [len(chunk.tokens) for chunk in chunks]
        outputs: Outputs = {
            TEXT_OUTPUT: _strings(chunk.text for chunk in chunks).reshape(shape),
            "output_ids": _padded(ids, request.pad_id, np.int32).reshape(*shape, -1),
            "sequence_length": np.array([len(row) for row in ids], dtype=np.int32).reshape(shape),
            FINISH_REASON: _strings(chunk.finish or "" for chunk in chunks).reshape(shape),
        }
        if request.log_probs:
            log_probs = [chunk.log_probs for chunk in chunks]
            sums = np.array([sum(row) for row in log_probs], dtype=np.float32)
            outputs["output_log_probs"] = _padded(log_probs, 0.0, np.float32).reshape(*shape, -1)
            outputs["cum_log_probs"] = sums.reshape(shape)
        outputs |= self._statistics(range(0, len(chunks), request.returns), request.returns, chunks, time_ns)
        return {name: tensor for name, tensor in outputs.items() if name in self.wanted}

    def _statistics(self, firsts: Sequence[int], each: int, chunks: list[Chunk], time_ns: int) -> Outputs:
        """What a request may ask to know at the end: shapes [rows, 1].

        Row r is about the `each` sequences from index `firsts[r]` on, which have their prompt in common.
        """
        outputs: Outputs = {}
        if self.request.num_input_tokens:
            prompts = [len(self.request.sequences[first].prompt) for first in firsts]
            outputs["num_input_tokens"] = np.array(prompts, dtype=np.int32)[:, None]
        if self.request.num_output_tokens:
            counts = [sum(self.counts[first : first + each]) for first in firsts]
            outputs["num_output_tokens"] = np.array(counts, dtype=np.int32)[:, None]
        if self.request.perf_metrics:
            known = {
                "arrival_time_ns": self.times.arrival,
                "first_scheduled_time_ns": self.times.first_scheduled,
                "first_token_time_ns": min(chunk.first_token_ns for chunk in chunks),
                "last_token_time_ns": time_ns,
            }
            outputs |= {name: np.full((len(firsts), 1), value, np.int64) for name, value in known.items()}
            outputs |= _speculation([chunks[row * each : (row + 1) * each] for row in range(len(firsts))])
        return outputs


def _speculation(rows: list[list[Chunk]]) -> Outputs:
    """Upstream's figures of speculative decoding, [rows, 1]; nothing where nobody guessed."""
    accepted = np.array([[sum(chunk.accepted for chunk in row)] for row in rows], dtype=np.int32)
    drafted = np.array([[sum(chunk.drafted for chunk in row)] for row in rows], dtype=np.int32)
    outputs: Outputs = {}
    if accepted.any() or drafted.any():
        outputs["total_accepted_draft_tokens"] = accepted
    if drafted.any():
        outputs["total_draft_tokens"] = drafted
        outputs["acceptance_rate"] = (accepted / np.maximum(drafted, 1)).astype(np.float32)
    return outputs


def merge(chunk: Chunk, later: Chunk) -> Chunk:
    """Two chunks of one sequence as one."""
    return Chunk(
        chunk.key,
        chunk.tokens + later.tokens,
        chunk.log_probs + later.log_probs,
        chunk.text + later.text,
        finish=later.finish,
        error=later.error,
        first_token_ns=later.first_token_ns,
        drafted=later.drafted,
        accepted=later.accepted,
    )


def _strings(values: Iterable[str]) -> np.ndarray:
    return np.array([value.encode() for value in values], dtype=object)


def _padded(rows: list[list[int]] | list[list[float]], fill: float, dtype: type) -> np.ndarray:
    padded = np.full((len(rows), max(map(len, rows))), fill, dtype=dtype)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return padded
