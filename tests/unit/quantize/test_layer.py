from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantize.layer import DecoderLayer, Simulation, rms_norm, rotary_tables
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import layer_prefix, layer_tensors, linear_groups, routers
from toolchain.model.spec import ModelSpec, load_spec

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = [
    ("Llama", {}),
    ("Llama", {"attention_bias": True, "mlp_bias": True}),
    ("Llama", {"rope_parameters": LLAMA3, "num_key_value_heads": 1}),
    ("Mistral", {"sliding_window": 5}),
    ("Mistral", {"sliding_window": None, "head_dim": 32}),
    ("Qwen2", {}),
    ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    ("Qwen3", {"head_dim": 32}),
]


def logits_of(
    model: Any, tokens_BS: torch.Tensor, stored: dict[str, torch.Tensor] | None = None
) -> torch.Tensor:
    """The model's logits, every decoder layer run by `DecoderLayer`; `stored` if the model names others."""
    spec = ModelSpec.from_config(model.config.to_dict() | {"architectures": [type(model).__name__]}, "config")
    tensors = stored or model.state_dict()
    hidden = tensors["model.embed_tokens.weight"][tokens_BS]
    rotary = rotary_tables(spec, tokens_BS.shape[1], hidden.dtype)
    for index in range(spec.num_hidden_layers):
        prefix = layer_prefix(index)
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        hidden = DecoderLayer(spec, index, own).forward(hidden, rotary)
    hidden = rms_norm(hidden, tensors["model.norm.weight"], spec.rms_norm_eps)
    return hidden @ tensors["lm_head.weight"].t()


@pytest.mark.parametrize(("family", "changes"), CASES)
@torch.no_grad()
def test_logits_equal_those_of_transformers(
    make_model: Callable[..., Any], family: str, changes: dict[str, Any]
) -> None:
    model = make_model(family, **changes)
    tokens = torch.randint(96, (3, 24), generator=torch.Generator().manual_seed(2))
    theirs = model(tokens).logits
    ours = logits_of(model, tokens)
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_window_counts_the_token_itself(make_model: Callable[..., Any]) -> None:
    narrow = make_model("Mistral", sliding_window=1, num_hidden_layers=1)
    tokens = torch.tensor([[1, 2, 3, 4], [9, 8, 7, 4]])
    with torch.no_grad():
        logits = logits_of(narrow, tokens)
    torch.testing.assert_close(logits[0, 3], logits[1, 3])


EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
SHARED = {"shared_expert_intermediate_size": 48, "num_attention_heads": 4}
MOE_CASES = [
    ("Mixtral", {"num_local_experts": 4}),
    ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 1, "sliding_window": 5}),
    ("Mixtral", {"num_local_experts": 1, "num_experts_per_tok": 1}),
    # 72 tokens a layer that go to one expert each: most of 200 experts get none.
    ("Mixtral", {"num_local_experts": 200, "num_experts_per_tok": 1}),
    ("Qwen2Moe", EXPERTS | SHARED),
    ("Qwen2Moe", EXPERTS | SHARED | {"norm_topk_prob": True, "mlp_only_layers": [1], "qkv_bias": False}),
    ("Qwen2Moe", EXPERTS | SHARED | {"num_experts": 1, "num_experts_per_tok": 1}),
    ("Qwen3Moe", EXPERTS | {"norm_topk_prob": True}),
    ("Qwen3Moe", EXPERTS | {"num_experts_per_tok": 1, "head_dim": 32}),
    ("Qwen3Moe", EXPERTS | {"decoder_sparse_step": 2, "use_sliding_window": True, "sliding_window": 7}),
]


def stored_layer(directory: Path, index: int) -> tuple[ModelSpec, dict[str, torch.Tensor]]:
    """The tensors of a layer as a checkpoint names them: transformers fuses experts in memory."""
    spec, checkpoint = load_spec(directory), Checkpoint.open(directory)
    prefix = layer_prefix(index)
    return spec, {name: checkpoint.read(prefix + name) for name in layer_tensors(spec, index)}


@pytest.mark.parametrize(("family", "changes"), MOE_CASES)
@torch.no_grad()
def test_logits_of_models_with_experts_equal_those_of_transformers(
    make_model: Callable[..., Any], tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    model = make_model(family, **changes)
    model.save_pretrained(tmp_path)
    tokens = torch.randint(96, (3, 24), generator=torch.Generator().manual_seed(2))
    checkpoint = Checkpoint.open(tmp_path)
    tensors = {name: checkpoint.read(name) for name in checkpoint.names}
    theirs = model(tokens).logits
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(logits_of(model, tokens, tensors), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "changes"), MOE_CASES)
@torch.no_grad()
def test_experts_in_bfloat16_round_as_those_of_transformers(
    make_model: Callable[..., Any], tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    """From one and the same input, since a rounding before the router may send a token elsewhere."""
    model = make_model(family, **changes).bfloat16()
    model.save_pretrained(tmp_path)
    seen: dict[int, list[torch.Tensor]] = {}
    for index, layer in enumerate(model.model.layers):
        keep = lambda module, args, output, index=index: seen.setdefault(index, []).append(args[0])  # noqa: E731
        layer.post_attention_layernorm.register_forward_hook(keep)
        layer.mlp.register_forward_hook(lambda module, args, output, index=index: seen[index].append(output))
    model(torch.randint(96, (3, 24), generator=torch.Generator().manual_seed(2)))
    for index, (entering, answer) in seen.items():
        spec, tensors = stored_layer(tmp_path, index)
        layer = DecoderLayer(spec, index, tensors)
        if layer.sparse:
            ours, theirs = layer.after_experts(entering), entering + answer
            assert ours.dtype == torch.bfloat16
            assert (ours - theirs).float().norm() < 0.01 * answer.float().norm()
            # transformers adds the answers of several experts in another order.
            if changes.get("num_experts_per_tok") == 1 and family != "Qwen2Moe":
                assert torch.equal(ours, theirs)


@torch.no_grad()
def test_every_token_goes_to_its_experts(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model("Qwen2Moe", **EXPERTS | SHARED | {"norm_topk_prob": True}).save_pretrained(tmp_path)
    spec, tensors = stored_layer(tmp_path, 0)
    layer = DecoderLayer(spec, 0, tensors)
    routing = layer.route(torch.randn(50, 64, generator=torch.Generator().manual_seed(3)))
    shared, *routed = layer.mlps
    assert torch.equal(routing.of(shared)[0], torch.arange(50))
    visits = torch.zeros(50, dtype=torch.int64)
    weight = torch.zeros(50)
    for mlp in routed:
        tokens, weights = routing.of(mlp)
        assert torch.equal(tokens, tokens.sort().values)
        visits[tokens] += 1
        weight[tokens] += weights
    assert (visits == 3).all()
    torch.testing.assert_close(weight, torch.ones(50))


@pytest.mark.parametrize(
    ("family", "changes"),
    [("Mixtral", {"num_local_experts": 4}), ("Qwen2Moe", EXPERTS | SHARED), ("Qwen3Moe", EXPERTS)],
)
@torch.no_grad()
def test_a_scale_in_the_norm_before_experts_is_undone_by_all_that_read_it(
    make_model: Callable[..., Any], tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    make_model(family, **changes).save_pretrained(tmp_path)
    spec, tensors = stored_layer(tmp_path, 0)
    layer = DecoderLayer(spec, 0, {name: tensor.double() for name, tensor in tensors.items()})
    hidden = torch.randn(2, 9, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    before = layer.after_experts(hidden)
    scale = torch.linspace(0.5, 2, 64, dtype=torch.float64)
    readers = [name for group in linear_groups(spec, 0) if group.kind == "gate_up" for name in group.members]
    for name in [*readers, *routers(spec, 0)]:
        layer.tensors[f"{name}.weight"] = layer.tensors[f"{name}.weight"] * scale
    norm = "post_attention_layernorm.weight"
    layer.tensors[norm] = layer.tensors[norm] / scale
    torch.testing.assert_close(layer.after_experts(hidden), before)


@torch.no_grad()
def test_rounded_inputs_and_caches_are_those_of_hooks_on_transformers(
    make_model: Callable[..., Any],
) -> None:
    """Every linear reads what a hook would hand it; keys are rounded after RoPE, as a cache holds them."""

    def coarse(x: torch.Tensor) -> torch.Tensor:
        return (x * 16).round() / 16

    model = make_model("Llama", num_hidden_layers=1)
    tokens = torch.randint(96, (2, 12), generator=torch.Generator().manual_seed(2))
    exact = model(tokens, output_hidden_states=True)
    entering = exact.hidden_states[0]
    layer = model.model.layers[0]
    names = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    for name in names:
        layer.get_submodule(name).register_forward_pre_hook(lambda _module, args: (coarse(args[0]),))
    hooked = model(tokens).logits

    spec = ModelSpec.from_config(model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}, "config")
    rotary = rotary_tables(spec, 12, torch.float32)

    def logits(simulation: Simulation) -> torch.Tensor:
        leaving = DecoderLayer(spec, 0, layer.state_dict(), simulation).forward(entering, rotary)
        return model.lm_head(model.model.norm(leaving))

    torch.testing.assert_close(logits(Simulation(dict.fromkeys(names, coarse))), hooked)
    assert not torch.allclose(hooked, exact.logits, atol=1e-4)

    seen: list[torch.Tensor] = []
    plain = DecoderLayer(spec, 0, layer.state_dict())
    plain.attend(plain.attention_input(entering), rotary, lambda *cached: seen.extend(cached))
    given: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        given.append(x)
        return torch.zeros_like(x)

    context = DecoderLayer(spec, 0, layer.state_dict(), Simulation(cache=(keep, keep))).attend(
        plain.attention_input(entering), rotary
    )
    assert all(ours.equal(theirs) for ours, theirs in zip(given, seen, strict=True))
    assert context.count_nonzero() == 0  # values of zero were attended to
