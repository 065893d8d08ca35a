"""What a recipe's quantization comes to for a model: the method of every linear, and why it cannot work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.model.families import (
    layer_examples,
    layer_prefix,
    linear_groups,
    linear_kind,
    linear_shapes,
)
from toolchain.model.selection import choose
from toolchain.model.spec import ModelSpec

if TYPE_CHECKING:
    from toolchain.recipe.quantization import Quantization


class Storage(NamedTuple):
    """How one linear is quantized: a row of `data/formats.yaml`, and the group size if it has groups."""

    method: str
    group_size: int = 128

    @property
    def group(self) -> int | None:
        """Input channels that share a scale; None where that is a row or the whole weight."""
        group = load_table("formats")[self.method]["group"]
        return self.group_size if group == "recipe" else group if isinstance(group, int) else None


PLAIN = Storage("none")


@lru_cache(maxsize=32)
def storages(spec: ModelSpec, quant: Quantization, method: str) -> Mapping[str, Storage]:
    """The storage of every linear by full name; `method` is that of linears which no override names.

    Asked for again and again while one recipe is planned; the answer is read-only.

    Raises:
        PlanError: a pattern that matches no linear, or names what is never quantized.
    """
    chosen = choose(
        spec,
        Storage(method, quant.group_size),
        PLAIN,
        quant.exclude,
        [
            (override.modules, Storage(override.method, override.group_size or quant.group_size))
            for override in quant.overrides
        ],
        PlanError,
    )
    return MappingProxyType(chosen)


@dataclass(frozen=True)
class LayerPattern:
    """How a decoder layer stores its linears: (kind, shape [out, in], storage) -> how many."""

    sparse: bool
    linears: Mapping[tuple[str, tuple[int, int], Storage], int]


@lru_cache(maxsize=32)
def patterns(spec: ModelSpec, quant: Quantization, method: str) -> Sequence[LayerPattern]:
    """`storages` layer by layer."""
    return layer_patterns(spec, storages(spec, quant, method))


def uniform_patterns(spec: ModelSpec, own: Storage) -> list[LayerPattern]:
    """Every linear stored alike, layer by layer."""
    kinds = {}
    for layer in layer_examples(spec):
        shapes = linear_shapes(spec, layer)
        linears = Counter((linear_kind(name), shape, own) for name, shape in shapes.items())
        kinds[spec.is_sparse(layer)] = LayerPattern(spec.is_sparse(layer), linears)
    return [kinds[spec.is_sparse(layer)] for layer in range(spec.num_hidden_layers)]


def layer_patterns(spec: ModelSpec, assigned: Mapping[str, Storage]) -> list[LayerPattern]:
    """How each layer stores its linears. Layers that do so alike share one object."""
    shapes = {spec.is_sparse(layer): linear_shapes(spec, layer) for layer in layer_examples(spec)}
    known: dict[tuple[bool, tuple[Storage, ...]], LayerPattern] = {}
    found = []
    for layer in range(spec.num_hidden_layers):
        sparse, prefix = spec.is_sparse(layer), layer_prefix(layer)
        own = tuple(assigned[prefix + name] for name in shapes[sparse])
        if (sparse, own) not in known:
            kinds = map(linear_kind, shapes[sparse])
            linears = Counter(zip(kinds, shapes[sparse].values(), own, strict=True))
            known[sparse, own] = LayerPattern(sparse, linears)
        found.append(known[sparse, own])
    return found


def defaults(quant: Quantization) -> tuple[str, ...]:
    """The methods that a linear may get which no override names: the recipe's, or those of its search."""
    return (quant.method,) if quant.search is None else quant.search.candidates


def published_storage(described: Mapping[str, Any] | None) -> Storage:
    """How the linears of a published checkpoint are stored, as far as its quantization_config says it."""
    if not described:
        return PLAIN
    groups = described.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, dict) else None
    if isinstance(group, dict) and isinstance(group.get("weights"), dict):
        described = dict(described) | group["weights"]
    bits = described.get("num_bits", described.get("bits", described.get("w_bit")))
    size = described.get("group_size", described.get("q_group_size"))
    algos = {row["quant_algo"]: name for name, row in load_table("formats").items() if name != "none"}
    algo = str(described.get("quant_algo"))
    if algo in algos:
        method = algos[algo]
    elif described.get("quant_method") == "fp8" or described.get("type") == "float":
        method = "nvfp4" if bits == 4 else "fp8"
    else:
        method = "int8_wo" if bits == 8 else "gptq"
    return Storage(method, size if isinstance(size, int) and size > 0 else 128)


def quantization_problems(spec: ModelSpec, quant: Quantization, flavour: str) -> list[PlanError]:
    """Why the section cannot work for the model, whatever the GPU; empty when it can."""
    problems = _source_problems(spec, quant)
    if quant.search is not None and spec.moe is not None:
        problems.append(
            PlanError(
                f"a search does not cover the experts of {spec.architecture}",
                where="quantization.search",
                fix="choose one method, and give other linears theirs in quantization.overrides",
            )
        )
    found = [patterns(spec, quant, method) for method in defaults(quant)]
    problems += _group_problems(found)
    if flavour != "openvino":
        problems += _fused_problems(spec, storages(spec, quant, defaults(quant)[0]))
    calibration = quant.calibration if quant.calibrates else None
    if calibration is not None and calibration.seq_len > spec.max_position_embeddings:
        problems.append(
            PlanError(
                f"calibration sequences of {calibration.seq_len} tokens exceed the model's context of "
                f"{spec.max_position_embeddings}",
                where="quantization.calibration.seq_len",
                fix=f"set it to {spec.max_position_embeddings} or less",
            )
        )
    return problems


def _source_problems(spec: ModelSpec, quant: Quantization) -> list[PlanError]:
    if spec.quantization is None or not (quant.methods or quant.calibrates):
        return []
    form = spec.quantization.get("quant_method", "an unknown form")
    return [
        PlanError(
            f"the model is quantized already ({form}), and would be quantized again",
            where="quantization.method",
            why="rounding what is rounded loses twice; no tool can undo the first time",
            fix="name the unquantized model as model.source, or set quantization.method to none to take this "
            "one as it is",
        )
    ]


def _group_problems(found: Sequence[Sequence[LayerPattern]]) -> list[PlanError]:
    """One error that names every kind of linear whose input channels the groups do not divide."""
    wrong: dict[str, None] = {}
    for pattern in {id(pattern): pattern for layers in found for pattern in layers}.values():
        for kind, (_, columns), own in pattern.linears:
            if own.group is not None and columns % own.group:
                wrong[f"{kind} has {columns}, for {own.method} in groups of {own.group}"] = None
    if not wrong:
        return []
    return [
        PlanError(
            "the groups do not divide the input channels: " + "; ".join(wrong),
            where="quantization.group_size",
            fix="choose a group size that divides them, or exclude these linears",
        )
    ]


def _fused_problems(spec: ModelSpec, assigned: Mapping[str, Storage]) -> list[PlanError]:
    """Linears that GPU runtimes compute as one, and that are to be stored in several ways."""
    together: dict[bool, dict[str, list[str]]] = {}
    for layer in layer_examples(spec):
        fused = together.setdefault(spec.is_sparse(layer), {})
        for group in linear_groups(spec, layer):
            what = "the experts" if group.expert is not None else " and ".join(group.members)
            fused.setdefault(what, []).extend(group.members)
    split: dict[str, None] = {}
    for layer in range(spec.num_hidden_layers):
        prefix = layer_prefix(layer)
        for what, members in together[spec.is_sparse(layer)].items():
            if len({assigned[prefix + name] for name in members}) > 1:
                split[what] = None
    if not split:
        return []
    return [
        PlanError(
            f"overrides or exclusions split {', '.join(split)}",
            where="quantization",
            why="the GPU flavours compute them with one kernel, so they must be stored in one way",
            fix="let the patterns match all of them, as *.self_attn.[qkv]_proj or *.mlp.*_proj do, or choose "
            "engine.flavour openvino",
        )
    ]
