"""What Prometheus sees of the engine, on Triton's metrics port beside Triton's own.

Gauges have the names and labels of TensorRT-LLM's backend (`nv_trt_llm_*`), latencies those of OpenTelemetry
for generative AI servers, with its buckets; what neither has begins with `llmbuild_`.
"""

from __future__ import annotations

import triton_python_backend_utils as pb_utils
from admission import BLOCK_TOKENS
from messages import Chunk, Report

_NS = 1e-9
_TTFT = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
_TPOT = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
_DURATION = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]


class Metrics:
    """The families and their metrics. Observations are per sequence, at its end."""

    def __init__(self, model: str, version: str, max_sequences: int, cache_blocks: int) -> None:
        """Register everything; Triton shows it with value 0 from then on."""
        self._labels = {"model": model, "version": version}
        self._families: list[object] = []  # a metric lives as long as its family
        self._cache_blocks = cache_blocks

        kind = pb_utils.MetricFamily
        requests = self._family("nv_trt_llm_request_metrics", "Sequences by state", kind.GAUGE)
        self._waiting, self._active, most = (
            self._metric(requests, request_type=name) for name in ("waiting", "active", "max")
        )
        most.set(max_sequences)
        blocks = self._family("nv_trt_llm_kv_cache_block_metrics", "Blocks of the KV cache", kind.GAUGE)
        self._used, self._free, self._reserved, most, tokens = (
            self._metric(blocks, kv_cache_block_type=name)
            for name in ("used", "free", "reserved", "max", "tokens_per")
        )
        most.set(cache_blocks)
        tokens.set(BLOCK_TOKENS)

        def histogram(name: str, description: str, buckets: list[float]) -> object:
            family = self._family(name, description, kind.HISTOGRAM)
            return family.Metric(labels=self._labels, buckets=buckets)

        self._ttft = histogram(
            "gen_ai_server_time_to_first_token_seconds", "From arrival to the first token", _TTFT
        )
        self._tpot = histogram(
            "gen_ai_server_time_per_output_token_seconds", "Of the tokens after the first", _TPOT
        )
        self._duration = histogram(
            "gen_ai_server_request_duration_seconds", "From arrival to the last token", _DURATION
        )
        self._queue = histogram("llmbuild_queue_time_seconds", "From arrival to the first step", _TTFT)

        def counter(name: str, description: str) -> object:
            return self._family(name, description, kind.COUNTER).Metric(labels=self._labels)

        self._prompt_tokens = counter("llmbuild_prompt_tokens_total", "Tokens of prompts")
        self._tokens = counter("llmbuild_generation_tokens_total", "Tokens generated")
        self._drafted = counter("llmbuild_draft_tokens_total", "Tokens that a draft model guessed")
        self._accepted = counter("llmbuild_accepted_draft_tokens_total", "Guessed tokens that held")
        ended = self._family("llmbuild_sequences_total", "Sequences by the way they ended", kind.COUNTER)
        reasons = ("stop", "length", "cancelled", "failed", "refused")
        self._ended = {name: self._metric(ended, finish_reason=name) for name in reasons}

    def report(self, report: Report) -> None:
        """The state after a turn of the engine."""
        self._waiting.set(report.waiting)
        self._active.set(report.active)
        self._reserved.set(report.reserved_blocks)
        self._used.set(report.used_blocks)
        self._free.set(self._cache_blocks - report.used_blocks)

    def ended(self, reason: str, sequences: int = 1) -> None:
        """Sequences that got no whole answer: `cancelled`, `failed` or `refused`."""
        self._ended[reason].increment(sequences)

    def finished(
        self, chunk: Chunk, *, prompt: int, tokens: int, arrival_ns: int, scheduled_ns: int, time_ns: int
    ) -> None:
        """A sequence came to its end with `chunk`. Times are of the monotonic clock."""
        self._ended[chunk.finish or "stop"].increment(1)
        self._prompt_tokens.increment(prompt)
        self._tokens.increment(tokens)
        self._drafted.increment(chunk.drafted)
        self._accepted.increment(chunk.accepted)
        if scheduled_ns:
            self._queue.observe((scheduled_ns - arrival_ns) * _NS)
        if chunk.first_token_ns:
            self._ttft.observe((chunk.first_token_ns - arrival_ns) * _NS)
            self._duration.observe((time_ns - arrival_ns) * _NS)
            if tokens > 1:
                self._tpot.observe((time_ns - chunk.first_token_ns) * _NS / (tokens - 1))

    def _family(self, name: str, description: str, kind: object) -> object:
        self._families.append(pb_utils.MetricFamily(name=name, description=description, kind=kind))
        return self._families[-1]

    def _metric(self, family: object, **labels: str) -> object:
        return family.Metric(labels=self._labels | labels)
