"""Taking pre_quant_scales out of a layer: into the norm or linear before, where that is exact.

`pre_quant_scale` multiplies the input channels of a linear. The same products come out when it multiplies the
output channels of what makes that input instead: the norm before q, k, v or gate, up; v_proj before o_proj;
up_proj before down_proj. Nothing is rounded here: a product that the stored type does not hold is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantize.linear import QuantizedLinear
from toolchain.errors import QuantizeError
from toolchain.model.families import LinearGroup, linear_groups, routers
from toolchain.model.spec import ModelSpec


@dataclass
class Layer:
    """A decoder layer while it is converted.

    Args:
        spec: the model.
        index: its number.
        linears: module name within the layer -> linear, for the quantized ones.
        plain: tensor name within the layer -> tensor, for all others.
        kv_cache: whether there are scales of keys and values, which a scaled v_proj would belie.
    """

    spec: ModelSpec
    index: int
    linears: dict[str, QuantizedLinear]
    plain: dict[str, Tensor]
    kv_cache: bool


def fold_pre_quant_scales(layer: Layer, form: str) -> None:
    """Rid the linears of `layer` of every pre_quant_scale. Scales that are all ones simply go.

    Raises QuantizeError where the form named `form` would need a rounded value.
    """
    # The last group first: o_proj's scale goes into v_proj before v_proj's own is looked at.
    for group in reversed(linear_groups(layer.spec, layer.index)):
        scale_I = _shared_scale(layer, group, form)
        if scale_I is not None:
            problem = _fold(layer, group, scale_I)
            if problem is not None:
                raise _unfoldable(layer, group.members[0], form, problem)
        for name in group.members:
            if name in layer.linears:
                layer.linears[name] = replace(layer.linears[name], pre_quant_scale=None)


def _shared_scale(layer: Layer, group: LinearGroup, form: str) -> Tensor | None:
    """The scale that all members of a group have in common; None where they have none but ones."""
    scales: Mapping[str, Tensor | None] = {
        name: layer.linears[name].pre_quant_scale if name in layer.linears else None for name in group.members
    }
    real = {name: s for name, s in scales.items() if s is not None and not bool((s == 1).all())}
    if not real:
        return None
    name, first = next(iter(real.items()))
    if len(real) < len(scales) or not all(torch.equal(first, other) for other in real.values()):
        raise _unfoldable(
            layer, name, form, f"{', '.join(scales)} read one input, each with a scale of its own"
        )
    if group.kind == "gate_up" and routers(layer.spec, layer.index):
        raise _unfoldable(layer, name, form, "the router and other experts read the same input without it")
    return first


def _fold(layer: Layer, group: LinearGroup, scale_I: Tensor) -> str | None:
    """Multiply the group's source by the scale of its output channels. Returns why that is not possible."""
    if group.source.endswith("norm"):
        return _multiply(layer.plain, f"{group.source}.weight", scale_I)
    if group.kind == "o":
        if layer.kv_cache:
            return "the scale of the KV cache was measured without it"
        spec = layer.spec
        per_head_KGD = scale_I.view(spec.num_key_value_heads, -1, spec.head_dim)
        if not torch.equal(per_head_KGD, per_head_KGD[:, :1].expand_as(per_head_KGD)):
            return "query heads that share a head of v_proj have different scales"
        scale_I = per_head_KGD[:, 0].flatten()
    source = layer.linears.get(group.source)
    if source is None:
        problem = _multiply(layer.plain, f"{group.source}.weight", scale_I.view(-1, 1))
        if problem is None and f"{group.source}.bias" in layer.plain:
            problem = _multiply(layer.plain, f"{group.source}.bias", scale_I)
        return problem
    if source.scales.shape[0] != source.out_features or source.is_fp4:
        return f"the scales of {group.source} do not belong to single output channels"
    parts = {"scales": source.scales}
    problem = _multiply(parts, "scales", scale_I.view(-1, 1))
    if source.bias is not None:
        parts["bias"] = source.bias
        problem = problem or _multiply(parts, "bias", scale_I)
    layer.linears[group.source] = replace(source, scales=parts["scales"], bias=parts.get("bias"))
    return problem


def _multiply(tensors: dict[str, Tensor], name: str, factor: Tensor) -> str | None:
    """Put tensors[name] * factor in its place, if its dtype holds every product."""
    exact = tensors[name].double() * factor.double()
    stored = exact.to(tensors[name].dtype)
    if not torch.equal(stored.double(), exact):
        return f"its product with {name} is not a number of {str(stored.dtype).removeprefix('torch.')}"
    tensors[name] = stored
    return None


def _unfoldable(layer: Layer, name: str, form: str, why: str) -> QuantizeError:
    return QuantizeError(
        f"the form {form} has no place for the linear's pre_quant_scale, and the layer cannot take it up",
        where=f"model.layers.{layer.index}.{name}",
        why=why,
        fix=f"quantize the source model again with quantization.format: {form}, or use the form modelopt",
    )
