"""What `auto` comes to: methods and splits that a recipe leaves open, ranked, each with the reason.

A choice works if the recipe with it breaks no rule and fits. Of those that work, first come the ones with
room for enough requests, and of these the fastest for each GPU used; where that is alike, the one that loses
least of the model, then the one on the fewest GPUs. NVIDIA's rules decide how several GPUs are used: what
fits one is not sharded; NVLink carries tensor parallelism; without it or between nodes, pipeline parallelism.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.plan.device import Device
from toolchain.plan.notes import INT4_WEIGHT_ONLY
from toolchain.recipe.quantization import READ_BY, Quantization
from toolchain.recipe.rules import violations
from toolchain.recipe.schema import Recipe

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.plan.fit import Fit

# In the order of what they lose. Of methods that are served alike the most exact one stands for all: awq_gptq
# for 4-bit weights, fp8 where there is calibration text, fp8_rowwise where there is none.
_CALIBRATED = ("none", "fp8", "int8_wo", "int8_sq", "nvfp4", "w4a8_awq", "awq_gptq")
_UNCALIBRATED = ("none", "fp8_rowwise", "int8_wo", "int4_wo")
_ON_CPU = frozenset({"none", "int8_wo", "awq_gptq", "int4_wo"})

_ENOUGH = 4
"""Room for `max_batch_size` sequences is enough if each may have `max_seq_len` / 4 tokens: requests seldom
reach the limit all at once."""

_ALIKE = 0.05
"""Published figures closer than this are taken for the same."""


@dataclass(frozen=True)
class Choice:
    """One way to fill in what is `auto`.

    Args:
        method, tensor, pipeline: the values.
        works: whether the recipe works with them.
        enough: whether it has room for enough requests as well.
        rank_bytes: weights on the fullest rank.
        sequences: full-length sequences whose cache fits; None where the device is not known.
        speed: published throughput of the method over 16-bit weights at about the recipe's batch size; None
            where there is no figure.
        reason: why it stands where it does.
    """

    method: str
    tensor: int
    pipeline: int
    works: bool
    enough: bool
    rank_bytes: int
    sequences: int | None
    speed: float | None
    reason: str

    @property
    def gpus(self) -> int:
        """Ranks of one copy."""
        return self.tensor * self.pipeline


Judge = Callable[[Recipe], "tuple[Fit, list[PlanError]]"]
"""The fit and the problems of a recipe without `auto`."""


def is_open(recipe: Recipe) -> bool:
    """Whether something in the recipe is `auto` that the plan decides."""
    split = recipe.parallelism
    return "auto" in (recipe.quantization.method, split.tensor, split.pipeline)


def fill_in(recipe: Recipe, method: str, tensor: int, pipeline: int) -> Recipe:
    """The recipe with these in place of `auto`; what the method does not read goes back to its default."""
    quant, data = recipe.quantization, recipe.model_dump(by_alias=True)
    if quant.method == "auto":
        data["quantization"]["method"] = method
        used = quant.methods | {method}
        for name, readers in READ_BY.items():
            if not used & readers:
                data["quantization"][name] = Quantization.model_fields[name].default
    data["parallelism"] |= {"tensor": tensor, "pipeline": pipeline}
    return Recipe.model_validate(data)


def rank_choices(
    recipe: Recipe, spec: ModelSpec, device: Device, judge: Judge
) -> list[tuple[Choice, Recipe]]:
    """Every way to fill in `recipe`, the best first, with the recipe that it makes.

    Args:
        recipe: with `auto` somewhere.
        spec: the model.
        device: what each rank runs on.
        judge: tells how a recipe without `auto` fits.

    Raises:
        PlanError: each of them breaks a rule of recipes.
    """
    found, rule = [], None
    for method in _methods(recipe, spec):
        for tensor, pipeline in _splits(recipe, device):
            filled = fill_in(recipe, method, tensor, pipeline)
            broken = next(violations(filled), None)
            if broken is not None:
                rule = broken
                continue
            fit, problems = judge(filled)
            choice = _choice(recipe, spec, device, method, fit, problems, tensor, pipeline)
            found.append((choice, filled, problems))
            if any(problem.where == "quantization.method" for problem in problems):
                break  # whatever the split, there is no kernel
    if not found:
        assert rule is not None
        raise PlanError(rule.what, where=rule.path, why=rule.why, fix=rule.fix)
    found.sort(key=lambda one: _rank(one[0], one[2], device))
    return [(choice, filled) for choice, filled, _ in found]


def _methods(recipe: Recipe, spec: ModelSpec) -> tuple[str, ...]:
    quant = recipe.quantization
    if quant.method != "auto":
        return (quant.method,)
    if spec.quantization is not None:  # rounding what is rounded loses twice
        return ("none",)
    methods = _UNCALIBRATED if quant.calibration is None else _CALIBRATED
    on_cpu = recipe.engine.flavour == "openvino"
    return tuple(method for method in methods if method in _ON_CPU or not on_cpu)


def _splits(recipe: Recipe, device: Device) -> list[tuple[int, int]]:
    """The splits whose copies fill the GPUs that there are; if none does, those that fit them."""
    split = recipe.parallelism
    if recipe.engine.flavour == "openvino":
        return [(1, 1)]
    gpus = split.gpus or device.node or 8
    node = min(device.node or gpus, gpus)
    tensors = [n for n in range(1, node + 1) if node % n == 0] if split.tensor == "auto" else [split.tensor]
    pipelines = range(1, gpus + 1) if split.pipeline == "auto" else [split.pipeline]
    every = [(tensor, pipeline) for tensor in tensors for pipeline in pipelines]
    fitting = [(tensor, pipeline) for tensor, pipeline in every if tensor * pipeline <= gpus]
    filling = [(tensor, pipeline) for tensor, pipeline in fitting if gpus % (tensor * pipeline) == 0]
    return filling or fitting or every[:1]


def _choice(
    recipe: Recipe,
    spec: ModelSpec,
    device: Device,
    method: str,
    fit: Fit,
    problems: list[PlanError],
    tensor: int,
    pipeline: int,
) -> Choice:
    longest = recipe.engine.max_seq_len or spec.max_position_embeddings
    batch, enough = recipe.engine.max_batch_size, has_room(fit, recipe, spec)
    speed = published_speed(method, device.generation, batch)
    if problems:
        reason = problems[0].what
    else:
        reasons = [_why_split(device, tensor, pipeline)]
        if recipe.quantization.method == "auto":
            reasons.append(_why_method(method, device, batch, speed))
        reason = "; ".join(filter(None, reasons))
        if not enough:
            reason += f"; the cache is small for {batch} requests"
    return Choice(
        method,
        tensor,
        pipeline,
        not problems,
        enough,
        fit.fullest.weights.total,
        fit.sequences(longest),
        speed,
        reason,
    )


def has_room(fit: Fit, recipe: Recipe, spec: ModelSpec) -> bool:
    """Whether the cache holds enough for `max_batch_size` requests, or it is not known."""
    longest = recipe.engine.max_seq_len or spec.max_position_embeddings
    fitting = fit.sequences(max(1, longest // _ENOUGH))
    return fitting is None or fitting >= recipe.engine.max_batch_size


def published_speed(method: str, generation: str | None, batch: int) -> float | None:
    """Throughput over 16-bit weights by `data/throughput.yaml`, at the nearest batch size below, or above.

    A figure of one request at a time says nothing of 8 or more, nor one of many about an eighth of them.
    """
    if method == "none":
        return 1.0
    kind = {"fp8_rowwise": "fp8"} | dict.fromkeys(INT4_WEIGHT_ONLY, "int4")
    figures: dict[int, float] = (
        load_table("throughput").get(generation or "", {}).get(kind.get(method, method), {})
    )
    below = [size for size in figures if size <= batch and (size > 1 or batch < 8)]
    above = [size for size in figures if batch < size < 8 * batch]
    return figures[max(below)] if below else figures[min(above)] if above else None


def _rank(choice: Choice, problems: list[PlanError], device: Device) -> tuple[Any, ...]:
    speed = (1.0 if choice.speed is None else choice.speed) / choice.gpus
    order = _CALIBRATED if choice.method in _CALIBRATED else _UNCALIBRATED
    loss = order.index(choice.method) if choice.method in order else 0
    # NVLink: tensor parallelism first, so the fewest stages; without it the fewest tensor ranks.
    split = choice.pipeline if device.node else choice.tensor
    known = choice.speed is not None
    if problems:  # the nearest to working is one that lacks nothing but memory, and least of that
        return (True, any(problem.where != "engine" for problem in problems), choice.rank_bytes, loss, split)
    return (False, not choice.enough, -round(speed / _ALIKE), not known, loss, choice.gpus, split)


def _why_split(device: Device, tensor: int, pipeline: int) -> str:
    gpus = tensor * pipeline
    if device.generation == "cpu":
        return ""
    if gpus == 1:
        return "fits one GPU: not sharded"
    if device.node and gpus > device.node:
        return f"{gpus} GPUs in {-(-gpus // device.node)} nodes: tensor within, pipeline between"
    if device.node:
        how = "tensor over NVLink" if pipeline == 1 else "pipeline, where NVLink carries tensor"
    else:
        how = "no NVLink, so pipeline" if tensor == 1 else "tensor over PCIe"
    return f"{gpus} GPUs: {how}"


def _why_method(method: str, device: Device, batch: int, speed: float | None) -> str:
    if method == "none":
        return "16-bit weights"
    if speed is None:
        return f"no published figure for {method} on {device.generation or 'an unknown GPU'}"
    said = f"{method} {speed:.2f} x 16-bit at batch {batch}"
    if method in INT4_WEIGHT_ONLY and speed < 1:
        said += ": weight-only int4 loses to 16-bit at high batch"
    return said
