"""What a verification found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolchain.engine.tensorrt.verify.tolerance import Tolerance
from toolchain.findings import Finding, errors

LEAST_TOP1 = 0.9
"""Where all weights are the source's, the likeliest token must agree at least so often: layers that are right
by themselves but joined wrongly agree nowhere. A tie between experts may cost a token."""

SCALE_TOLERANCE = 1e-3
"""A scale is copied; one that went through bfloat16 is off by more."""


@dataclass(frozen=True)
class LayerError:
    """How far a decoder layer is off, as `channel_error` tells it.

    Args:
        layer, stage: which.
        attention, mlp: of what either half adds to the residual stream, given what it reads in the source.
        after: of the residual stream after the layer, from the ranks' own embedding on.
        scales: of the scales of activations and cache (`scale_error`).
    """

    layer: int
    stage: int
    attention: float
    mlp: float
    after: float
    scales: float = 0.0

    @property
    def halves(self) -> tuple[tuple[str, float], ...]:
        """Each half and its error."""
        return ("attention", self.attention), ("MLP", self.mlp)


@dataclass
class Verification:
    """The ranks of `checkpoint` against `source`.

    Attributes:
        tensor, pipeline: the parallelism.
        tokens: how many were run.
        allowed: the tolerance.
        embedding, head: the error of each.
        layers: in the order of the model.
        max_logit_difference: largest difference of two logits, of ranks that run by themselves.
        logit_range: standard deviation of the source's logits, for comparison.
        top1: share of the tokens after which both find the same token likeliest.
        differences: what `config.json` says otherwise than the source, without which nothing fits.
        findings: of the checklist.
        peak_memory: bytes, of the largest process.
    """

    checkpoint: Path
    source: Path
    backend: str
    tensor: int
    pipeline: int
    tokens: int
    allowed: Tolerance
    embedding: float = 0.0
    head: float = 0.0
    layers: list[LayerError] = field(default_factory=list)
    max_logit_difference: float = 0.0
    logit_range: float = 0.0
    top1: float = 1.0
    differences: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory: int = 0

    @property
    def diverging(self) -> list[str]:
        """What is off by more than is allowed, first to last: "the embedding", "layer 3, its MLP", ..."""
        return list(self._diverging())

    def _diverging(self) -> Iterator[str]:
        limit = self.allowed.value
        if self.embedding > limit:
            yield "the embedding"
        for layer in self.layers:
            for half, error in layer.halves:
                if error > limit:
                    yield f"layer {layer.layer}, its {half}"
            if layer.scales > SCALE_TOLERANCE:
                yield f"layer {layer.layer}, its scales of activations"
        if self.head > limit:
            yield "the output layer"

    @property
    def problem(self) -> str | None:
        """Why the checkpoint is not the source's, in a sentence; None when it is."""
        if found := self.diverging:
            more = len(found) - 1
            return f"{found[0]} diverges first{f', then {more} more' if more else ''}"
        if self.allowed.is_rounding and self.top1 < LEAST_TOP1:
            return f"every layer by itself agrees, but the likeliest token only in {self.top1:.0%} of places"
        if wrong := errors(self.findings):
            return f"{wrong[0].where}: {wrong[0].what}"
        return None

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "checkpoint": self.checkpoint,
            "source": self.source,
            "backend": self.backend,
            "tensor_parallel": self.tensor,
            "pipeline_parallel": self.pipeline,
            "tokens": self.tokens,
            "passed": self.problem is None,
            "problem": self.problem,
            "diverging": self.diverging,
            "tolerance": vars(self.allowed),
            "max_logit_difference": self.max_logit_difference,
            "logit_standard_deviation": self.logit_range,
            "top1": self.top1,
            "embedding": self.embedding,
            "layers": [vars(layer) for layer in self.layers],
            "head": self.head,
            "config_differences": self.differences,
            "findings": [finding.to_json() for finding in self.findings],
            "seconds": self.seconds,
            "peak_memory_of_a_rank": self.peak_memory,
        }
