"""Tensor names and shapes against the modules that transformers builds."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedModel

from toolchain.model.families import (
    LM_HEAD,
    expected_tensors,
    layer_prefix,
    layer_tensors,
    linear_groups,
    linear_shapes,
    optional_tensors,
)
from toolchain.model.spec import ModelSpec


@pytest.fixture
def model(variant: str, make_model) -> PreTrainedModel:
    return make_model(variant)


@pytest.fixture
def spec(model: PreTrainedModel) -> ModelSpec:
    return ModelSpec.from_config(
        model.config.to_dict() | {"architectures": [type(model).__name__]}, "config.json"
    )


def test_names_and_shapes_are_those_of_transformers(model: PreTrainedModel, spec: ModelSpec) -> None:
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert expected_tensors(spec) == state


def test_only_a_tied_head_is_optional(model: PreTrainedModel, spec: ModelSpec) -> None:
    assert optional_tensors(spec) == ({LM_HEAD} if model.config.tie_word_embeddings else set())


def test_groups_hold_every_linear_once_in_order_of_computation(
    model: PreTrainedModel, spec: ModelSpec
) -> None:
    layer = model.model.layers[0]
    linears = {name for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
    members = [member for group in linear_groups(spec) for member in group.members]
    assert len(members) == len(set(members))
    assert set(members) == linears == set(linear_shapes(spec))
    assert [group.kind for group in linear_groups(spec)] == ["qkv", "o", "gate_up", "down"]


def test_members_of_a_group_read_one_activation(model: PreTrainedModel, spec: ModelSpec) -> None:
    layer = model.model.layers[0]
    seen: dict[str, int] = {}
    for name in linear_shapes(spec):
        hook = lambda module, args, name=name: seen.__setitem__(name, args[0].data_ptr())  # noqa: E731
        layer.get_submodule(name).register_forward_pre_hook(hook)
    model(torch.arange(5)[None])
    for group in linear_groups(spec):
        assert len({seen[member] for member in group.members}) == 1


def fold(layer: torch.nn.Module, spec: ModelSpec, kind: str, scale_I: torch.Tensor) -> None:
    """Divide the source's channels by `scale_I`, multiply the members' input channels by it."""
    (group,) = (group for group in linear_groups(spec) if group.kind == kind)
    for member in group.members:
        layer.get_submodule(member).weight.data *= scale_I
    source = layer.get_submodule(group.source)
    if kind == "o":  # the heads of a key-value group read the same channels of v_proj
        heads_HD = scale_I.reshape(spec.num_attention_heads, spec.head_dim)
        scale_I = heads_HD[:: spec.num_attention_heads // spec.num_key_value_heads].reshape(-1)
    source.weight.data /= scale_I if source.weight.dim() == 1 else scale_I[:, None]
    if getattr(source, "bias", None) is not None:
        source.bias.data /= scale_I


@pytest.mark.parametrize("kind", ["qkv", "o", "gate_up", "down"])
def test_a_scale_folded_into_the_source_changes_nothing(
    model: PreTrainedModel, spec: ModelSpec, kind: str
) -> None:
    model = model.double()
    tokens = torch.arange(7)[None]
    before = model(tokens).logits
    width = linear_shapes(spec)[next(g.members[0] for g in linear_groups(spec) if g.kind == kind)][1]
    scale = torch.linspace(0.5, 2, width, dtype=torch.float64)
    if kind == "o":
        groups = spec.num_attention_heads // spec.num_key_value_heads
        scale = scale[: width // groups].reshape(-1, spec.head_dim).repeat_interleave(groups, 0).reshape(-1)
    fold(model.model.layers[0], spec, kind, scale)
    torch.testing.assert_close(model(tokens).logits, before, rtol=0, atol=1e-6)


def test_layer_tensors_are_those_of_the_prefix(spec: ModelSpec) -> None:
    for layer in range(spec.num_hidden_layers):
        prefix = layer_prefix(layer)
        named = {n.removeprefix(prefix): s for n, s in expected_tensors(spec).items() if n.startswith(prefix)}
        assert named == layer_tensors(spec)
