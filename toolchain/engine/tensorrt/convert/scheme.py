"""How the modules of an engine are quantized, found out from a checkpoint's scheme before any work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from quantize.formats.base import (
    INT8_DYNAMIC,
    INT8_GROUPS,
    MIXED,
    NVFP4_WO,
    W4A8_AWQ,
    W4A16,
    W4A16_AWQ,
    LinearScheme,
    Scheme,
)
from toolchain.engine.tensorrt.convert.encode import ALGOS, GROUPWISE, OF_EXPERTS
from toolchain.engine.tensorrt.convert.layout import RankLayout
from toolchain.engine.tensorrt.convert.modules import COLUMN, QKV, Block, Module, layer_blocks
from toolchain.errors import BuildError, combined
from toolchain.model.families import layer_prefix, linear_shapes
from toolchain.model.spec import ModelSpec

_GROUP_SIZES = (128, 64)

_REASONS = {
    INT8_GROUPS: "its 8-bit groups are stored in an order that belongs to one GPU generation",
    INT8_DYNAMIC: "SmoothQuant of dynamic activations is for a plugin, in a form that cannot be checked here",
    NVFP4_WO: "TensorRT-LLM's engines have no 4-bit floats with 16-bit activations",
}


@dataclass(frozen=True)
class EngineScheme:
    """How the modules of the rank files are quantized.

    Args:
        modules: for each decoder layer, by name within the layer: how, for the quantized ones.
        kv_cache_quant_algo: "FP8", "INT8" or None.
        names: for each decoder layer, every module that there is.
    """

    modules: tuple[Mapping[str, LinearScheme], ...]
    kv_cache_quant_algo: str | None
    names: tuple[tuple[str, ...], ...]

    @property
    def distinct(self) -> tuple[LinearScheme, ...]:
        """Every scheme that occurs."""
        return tuple(dict.fromkeys(own for layer in self.modules for own in layer.values()))

    @property
    def quant_algo(self) -> str | None:
        """The algorithm of all, "MIXED_PRECISION" where they differ, None where nothing is quantized."""
        if not self.distinct:
            return None
        return self.distinct[0].quant_algo if len(self.distinct) == 1 else MIXED

    def local(self, layout: RankLayout) -> dict[str, LinearScheme | None]:
        """How each module is quantized, by its path in the rank files; None where it is not.

        One config.json serves all pipeline stages, and in each of them layers count from zero.

        Raises:
            BuildError: layers that have one number in different stages are quantized differently.
        """
        found: dict[str, LinearScheme | None] = {}
        for stage in layout.stages(len(self.modules)):
            for layer in stage:
                for name in self.names[layer]:
                    path = f"transformer.layers.{layer - stage.start}.{name}"
                    own = self.modules[layer].get(name)
                    if found.setdefault(path, own) != own:
                        raise BuildError(
                            f"{name} of layer {layer} is not quantized like that of the layer which has its "
                            "number in another pipeline stage",
                            where=layer_prefix(layer).removesuffix("."),
                            why="the layers of each stage count from zero, and one config.json tells of all",
                            fix="set parallelism.pipeline to 1, or quantize equal numbers alike",
                        )
        return found


def engine_scheme(spec: ModelSpec, scheme: Scheme, layout: RankLayout) -> EngineScheme:
    """What a checkpoint's scheme amounts to in rank files.

    Raises:
        BuildError: with everything that cannot be stored, and the reasons.
    """
    _check_family(spec)
    problems = list(_unstorable(scheme))
    if problems:
        raise combined(problems)
    # TensorRT-LLM's 4-bit weights are in groups: a scale per output channel becomes groups that repeat it.
    size = _group_size_for(spec, layout)
    own = {
        name: replace(linear, quant_algo=W4A16_AWQ, group_size=size, variant="")
        if linear.quant_algo == W4A16
        else linear
        for name, linear in scheme.linears.items()
    }
    layers, names = [], []
    for index in range(spec.num_hidden_layers):
        modules: dict[str, LinearScheme] = {}
        blocks = layer_blocks(spec, index)
        for block in blocks:
            found = {own.get(layer_prefix(index) + member) for member in block.members}
            if len(found) > 1:
                problems.append(_differing(spec, index, block))
                continue
            linear = found.pop()
            if linear is not None:
                modules |= dict.fromkeys((module.name for module in block.modules), linear)
                problems += _misfits(spec, index, block, linear, layout)
        problems += _expert_problems(spec, index, blocks, own)
        layers.append(modules)
        names.append(tuple(dict.fromkeys(module.name for block in blocks for module in block.modules)))
    if problems:
        raise combined(_first_of_each(problems))
    result = EngineScheme(tuple(layers), scheme.kv_cache_quant_algo, tuple(names))
    result.local(layout)
    return result


def with_kv_cache(scheme: Scheme, kv_cache: str | None) -> Scheme:
    """The scheme with a quantized KV cache, if it has none; `kv_cache` is "FP8" or None."""
    return scheme if scheme.kv_cache_quant_algo else replace(scheme, kv_cache_quant_algo=kv_cache)


def _check_family(spec: ModelSpec) -> None:
    """Raise BuildError for variants of the families that TensorRT-LLM's model classes do not have."""
    problem = None
    if spec.moe is not None and not all(spec.moe.sparse_layers):
        problem = "some layers have experts and some have not"
    elif spec.family.startswith("qwen") and spec.o_bias:
        problem = "o_proj has a bias"
    elif spec.family.startswith("qwen3") and spec.qkv_bias:
        problem = "q_proj, k_proj and v_proj have biases"
    if problem is not None:
        raise BuildError(
            f"TensorRT-LLM's engines have no {spec.architecture} in which {problem}",
            where="config.json",
            fix="choose engine.flavour pytorch or vllm",
        )


def _unstorable(scheme: Scheme) -> Iterator[BuildError]:
    start = "quantize the source model with a method of TensorRT-LLM's, or choose another engine.flavour"
    for linear in scheme.distinct:
        where = next(name for name, own in scheme.linears.items() if own == linear)
        if linear.act_order:
            yield BuildError(
                "the checkpoint has groups of scattered channels (act-order, g_idx)",
                where=where,
                why="TensorRT-LLM's kernels read groups of consecutive channels",
                fix=start,
            )
        elif linear.zero_point:
            yield BuildError(
                "the checkpoint has zero points (asymmetric codes)",
                where=where,
                why="TensorRT-LLM stores them in an order that belongs to one GPU generation",
                fix=start,
            )
        elif linear.quant_algo not in (*ALGOS, W4A16):
            yield BuildError(
                f"{linear.quant_algo} cannot be stored for an engine",
                where=where,
                why=_REASONS.get(linear.quant_algo, "TensorRT-LLM's engines do not have it"),
                fix=start,
            )
        elif linear.quant_algo in GROUPWISE and linear.group_size not in _allowed_groups(linear.quant_algo):
            yield BuildError(
                f"groups of {linear.group_size} cannot be stored as {linear.quant_algo}",
                where=where,
                why=f"its kernels have groups of {' or '.join(map(str, _allowed_groups(linear.quant_algo)))}",
                fix=start,
            )


def _allowed_groups(algo: str) -> tuple[int, ...]:
    return (128,) if algo == W4A8_AWQ else _GROUP_SIZES


def _group_size_for(spec: ModelSpec, layout: RankLayout) -> int:
    columns = {
        shape[1] for layer in range(spec.num_hidden_layers) for shape in linear_shapes(spec, layer).values()
    }
    return next((size for size in _GROUP_SIZES if not any(c % (size * layout.tensor) for c in columns)), 64)


def _differing(spec: ModelSpec, layer: int, block: Block) -> BuildError:
    return BuildError(
        f"{', '.join(block.members)} are quantized differently",
        where=layer_prefix(layer).removesuffix("."),
        why="an engine multiplies their input by them together",
        fix="exclude all of them or none, and give them one method",
    )


def _expert_problems(
    spec: ModelSpec, layer: int, blocks: tuple[Block, ...], own: Mapping[str, LinearScheme]
) -> Iterator[BuildError]:
    """The routed experts of a layer are one thing to an engine, which does not come in every form."""
    routed = {
        own.get(layer_prefix(layer) + member)
        for block in blocks
        if block.expert is not None
        for member in block.members
    }
    where = layer_prefix(layer).removesuffix(".")
    if len(routed) > 1:
        yield BuildError(
            "the experts of a layer are quantized differently",
            where=where,
            why="an engine has one method for all experts of a layer",
            fix="exclude all of them or none, and give them one method",
        )
    for linear in routed:
        if linear is not None and linear.quant_algo not in OF_EXPERTS:
            yield BuildError(
                f"experts cannot be stored as {linear.quant_algo}",
                where=where,
                why="it is not known how TensorRT-LLM would read them: ModelOpt does not export such experts",
                fix=f"choose a method that gives {', '.join(OF_EXPERTS)}",
            )


def _misfits(
    spec: ModelSpec, layer: int, block: Block, linear: LinearScheme, layout: RankLayout
) -> Iterator[BuildError]:
    """Sizes that TensorRT-LLM's loader or kernels refuse."""
    if linear.group_size is None:
        return
    parts = layout.tensor if block.expert is None else layout.moe_sizes[0]
    shapes = linear_shapes(spec, layer)
    for module in block.modules:
        rows, columns = _full_shape(spec, module, parts, shapes)
        size = linear.group_size
        if module.split != COLUMN and (columns // parts) % size:
            yield BuildError(
                f"groups of {size} do not divide the {columns // parts} input channels of a rank",
                where=layer_prefix(layer) + module.name,
                fix="lower parallelism.tensor, or quantize with smaller groups",
            )
        elif linear.quant_algo in GROUPWISE:
            step = max(size, 128 if linear.quant_algo == W4A8_AWQ else 64) * parts
            if rows % step or columns % step:
                yield BuildError(
                    f"its {rows} x {columns} weights are no multiples of {step}, "
                    f"which TensorRT-LLM's {linear.quant_algo} pads them to and then does not load them",
                    where=layer_prefix(layer) + module.name,
                    fix="lower parallelism.tensor, quantize with smaller groups, or choose fp8",
                )


def _full_shape(
    spec: ModelSpec, module: Module, parts: int, shapes: Mapping[str, tuple[int, int]]
) -> tuple[int, int]:
    """Output and input channels of a module over all ranks, repeated key-value heads included."""
    rows = sum(shapes[member][0] for member in module.members)
    if module.name == QKV and parts > spec.num_key_value_heads:
        rows += 2 * (parts - spec.num_key_value_heads) * spec.head_dim
    return rows, shapes[module.members[0]][1]


def _first_of_each(problems: list[BuildError]) -> list[BuildError]:
    """One of each text: layers are mostly alike."""
    return list({problem.what: problem for problem in reversed(problems)}.values())[::-1]
