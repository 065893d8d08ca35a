"""What each stage of a build takes on this machine: time with a range, host and GPU memory, disk.

The time is that of a rule of thumb, corrected by what builds of models of this size took here. Without any,
the rule is that of two CPU cores, of one H100 where quantization computes on a GPU, and of published figures
for trtllm-build, and the range is wide.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from toolchain.plan import memory, openvino
from toolchain.plan.device import has_nvidia
from toolchain.plan.fit import GPU_RUNTIME_BYTES
from toolchain.recipe.section import size_bytes

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.plan.fit import Fit
    from toolchain.plan.stored import PlannedWeights
    from toolchain.recipe import Recipe

LIBRARIES = 256 * 2**20
"""Interpreter, torch and the like of a stage on the host."""

_UNSURE, _HINTED, _SURE = 3.0, 1.6, 1.25
"""The range around an estimate, as a factor, at least: measured never, once or twice, or more often. What was
measured is always in it."""
_NEAR = 8.0
"""Models are of one size if their weights differ by less than this factor. Others tell nothing: most of the
time of a small one goes to what a large one hardly notices."""

_TRTLLM_HOST = 2.2
"""Host memory of trtllm-build over a rank's weights: 40.3 GB for 18.5 GB (TensorRT-LLM issue 2324)."""


@dataclass(frozen=True)
class Work:
    """What decides how long a stage takes, of this build or an earlier one.

    Args:
        stage: its name.
        kind: the method of a quantize stage, the flavour of an engine stage; "" where there are no kinds.
        device: "cpu" or "cuda".
        weights: elements of the linears of all layers.
        active: those of them that one token goes through: of a model with experts, of a few.
        stored: bytes that the stage reads or writes, whichever takes longer.
        tokens: that pass through the model.
    """

    stage: str
    kind: str
    device: str
    weights: int
    active: int
    stored: int
    tokens: int = 0

    @property
    def seconds(self) -> float:
        """The rule of thumb."""
        if self.stage == "quantize" and self.kind != "none":
            if self.device == "cuda":
                return 5 + self.weights * 1e-9 + self.active * self.tokens * 3.1e-14
            return 3 + (self.weights * 7e-8 + self.active * self.tokens * 1e-10) * _slower()
        if self.stage in ("gate", "baseline"):
            if self.device == "cuda":
                return 3 + self.weights * 1e-9 + self.active * self.tokens * 2e-14
            return 3 + (self.weights * 7e-8 + self.active * self.tokens * 6e-11) * _slower()
        if self.stage == "engine" and self.kind == "tensorrt":
            return 60 + self.weights * 8e-9
        return 1 + self.stored / 200e6


@dataclass(frozen=True)
class Measured:
    """A stage that ran here before: its work, how long it took, and its peak of host memory in bytes."""

    work: Work
    seconds: float
    peak_memory: int


@dataclass(frozen=True)
class StageNeed:
    """What a stage will take.

    Args:
        stage: its name.
        host, gpu, disk: bytes at the peak; of the disk what it leaves there.
        seconds: likely.
        fastest, slowest: the range that is to be reckoned with.
        basis: where the time comes from, in words.
    """

    stage: str
    host: int
    gpu: int
    disk: int
    seconds: float
    fastest: float
    slowest: float
    basis: str

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return asdict(self)


def stage_needs(
    recipe: Recipe,
    spec: ModelSpec,
    weights: PlannedWeights,
    fit: Fit,
    measured: Sequence[Measured] = (),
) -> list[StageNeed]:
    """The stages of a build of `recipe`, which has no `auto`, in order.

    Args:
        recipe, spec, weights, fit: what is planned.
        measured: what earlier builds took on this machine.
    """
    quant, flavour = recipe.quantization, recipe.engine.flavour
    device = "cuda" if quant.device == "cuda" or (quant.device == "auto" and has_nvidia()) else "cpu"
    source, stored = weights.source.total, weights.stored.total
    model = memory.linear_count(spec), memory.active_count(spec)
    calibration = quant.calibration if quant.calibrates else None
    samples, length = (calibration.samples, calibration.seq_len) if calibration is not None else (0, 0)
    limit = quant.hidden_states_memory
    layer = memory.quantize_peak_bytes(spec, quant.methods, 0, 0)
    states = memory.quantize_peak_bytes(
        spec, quant.methods, samples, length, None if limit is None else size_bytes(limit)
    ) - layer  # fmt: skip
    # A search quantizes in each of its ways, and then as it has chosen.
    runs = 1 if quant.search is None else 1 + len(quant.search.candidates)
    table = memory.weight_bytes(spec).embedding
    needs = [
        _need(Work("source", "", "cpu", *model, source), table, 0, 0, measured),
        _need(
            Work("quantize", quant.method, device, *model, max(source, stored), runs * samples * length),
            states if device == "cuda" else states + layer,
            layer if device == "cuda" else 0,
            stored,
            measured,
        ),
    ]
    texts = _held_out(recipe, spec)
    for stage, tokens in [
        *(("baseline", count) for count in texts),
        *([("gate", sum(texts))] if texts else []),
    ]:
        hidden = memory.quantize_peak_bytes(spec, (), 1, max(texts))
        work = Work(stage, "", device, *model, source, tokens)
        needs.append(_need(work, hidden, layer if device == "cuda" else 0, 0, measured))
    if flavour == "tensorrt":
        ranks = sum(rank.weights.total for rank in fit.ranks)
        each, at_once = fit.fullest.weights.total, recipe.engine.build.workers or len(fit.ranks)
        needs.append(_need(Work("convert", "", "cpu", *model, 2 * ranks), 4 * table, 0, ranks, measured))
        work = Work("engine", flavour, "cuda", *model, ranks)
        host = int(_TRTLLM_HOST * each * at_once)
        needs.append(_need(work, host, each + GPU_RUNTIME_BYTES, ranks, measured))
    elif flavour == "openvino":
        ir = openvino.ir_bytes(spec, weights.stored, weights.assigned)
        needs.append(_need(Work("engine", flavour, "cpu", *model, ir), 64 * 2**20, 0, ir, measured))
    return needs


def _held_out(recipe: Recipe, spec: ModelSpec) -> list[int]:
    """Tokens of each held-out text: the source runs over it once for all builds, the checkpoint over all."""
    texts = [text for text in (recipe.gates.perplexity, recipe.gates.kl) if text is not None]
    different = [text for n, text in enumerate(texts) if not any(text.same_text(t) for t in texts[:n])]
    return [text.windows * (text.window or min(2048, spec.max_position_embeddings)) for text in different]


def _need(work: Work, host: int, gpu: int, disk: int, measured: Sequence[Measured]) -> StageNeed:
    """The stage of `work`; `host` is beside the libraries."""
    rule, peak = work.seconds, LIBRARIES + host
    near = [one for one in measured if _comparable(one.work, work)]
    if near:
        took = [rule * one.seconds / one.work.seconds for one in near]
        spread = _SURE if len(near) > 2 else _HINTED
        basis = f"{len(near)} earlier run{'s' if len(near) > 1 else ''} here"
        peak = max((one.peak_memory for one in near if one.work == work), default=peak)
    else:
        took, spread = [rule], _UNSURE
        published = work.stage == "engine" and work.kind == "tensorrt"
        basis = "published figures" if published else "a rule of thumb: none of this size ran here"
    likely = median(took)
    fastest, slowest = min(likely / spread, *took), max(likely * spread, *took)
    return StageNeed(work.stage, peak, gpu, disk, likely, fastest, slowest, basis)


def _comparable(one: Work, other: Work) -> bool:
    alike = (one.stage, one.kind, one.device) == (other.stage, other.kind, other.device)
    return alike and 1 / _NEAR < one.weights / other.weights < _NEAR


def _slower() -> float:
    """How much slower this machine's processor is than two cores."""
    return 2 / max(1, min(os.cpu_count() or 2, 16))
