"""Tensor names and shapes against the modules that transformers builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import (
    LM_HEAD,
    active_width,
    expected_tensors,
    layer_examples,
    layer_mlps,
    layer_prefix,
    layer_tensors,
    linear_groups,
    linear_kinds,
    linear_shapes,
    mlp_widths,
    optional_tensors,
    routers,
)
from toolchain.model.spec import ModelSpec, load_spec


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
    members = [member for group in linear_groups(spec, 0) for member in group.members]
    assert len(members) == len(set(members))
    assert set(members) == linears == set(linear_shapes(spec, 0))
    assert [group.kind for group in linear_groups(spec, 0)] == ["qkv", "o", "gate_up", "down"]


def test_members_of_a_group_read_one_activation(model: PreTrainedModel, spec: ModelSpec) -> None:
    layer = model.model.layers[0]
    seen: dict[str, int] = {}
    for name in linear_shapes(spec, 0):
        hook = lambda module, args, name=name: seen.__setitem__(name, args[0].data_ptr())  # noqa: E731
        layer.get_submodule(name).register_forward_pre_hook(hook)
    model(torch.arange(5)[None])
    for group in linear_groups(spec, 0):
        assert len({seen[member] for member in group.members}) == 1


def fold(layer: torch.nn.Module, spec: ModelSpec, kind: str, scale_I: torch.Tensor) -> None:
    """Divide the source's channels by `scale_I`, multiply the members' input channels by it."""
    (group,) = (group for group in linear_groups(spec, 0) if group.kind == kind)
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
    width = linear_shapes(spec, 0)[next(g.members[0] for g in linear_groups(spec, 0) if g.kind == kind)][1]
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
        assert named == layer_tensors(spec, layer)


@pytest.fixture
def saved(moe_variant: str, make_model, tmp_path: Path) -> Path:
    make_model(moe_variant).save_pretrained(tmp_path)
    return tmp_path


def test_names_and_shapes_of_experts_are_those_that_transformers_stores(saved: Path) -> None:
    spec, checkpoint = load_spec(saved), Checkpoint.open(saved)
    expected = expected_tensors(spec)
    stored = {name: checkpoint.shape(name) for name in checkpoint.names}
    assert stored == {name: expected[name] for name in expected.keys() - optional_tensors(spec)}
    checkpoint.verify(spec)


def test_groups_of_sparse_layers_hold_every_linear_once_and_no_router(saved: Path) -> None:
    spec = load_spec(saved)
    assert spec.moe is not None
    for layer in range(spec.num_hidden_layers):
        groups = linear_groups(spec, layer)
        mlps = layer_mlps(spec, layer)
        members = [member for group in groups for member in group.members]
        assert len(members) == len(set(members))
        assert set(members) == set(linear_shapes(spec, layer))
        assert not set(members) & set(routers(spec, layer))
        assert [group.kind for group in groups] == ["qkv", "o"] + ["gate_up", "down"] * len(mlps)
        assert tuple(group.mlp for group in groups[2::2]) == mlps
        routed = [group.expert for group in groups if group.expert is not None]
        assert routed == [n for n in range(spec.moe.num_experts * spec.is_sparse(layer)) for _ in range(2)]


def test_kinds_of_layers_and_linears(make_model, tmp_path: Path) -> None:
    make_model("qwen2-moe, windows, every second layer, no bias").save_pretrained(tmp_path)
    spec = load_spec(tmp_path)
    assert layer_examples(spec) == (0, 1)
    assert [kind for kind in linear_kinds(spec) if "self_attn" not in kind] == [
        *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        *("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"),
        *("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj", "mlp.experts.*.down_proj"),
    ]
    assert linear_kinds(spec)["mlp.experts.*.down_proj"] == (32, 24)
    assert mlp_widths(spec) == {
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "shared_expert_intermediate_size": 40,
    }
    assert active_width(spec) == 2 * 24 + 40
