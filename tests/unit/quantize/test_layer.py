from collections.abc import Callable
from typing import Any

import pytest
import torch

from quantize.layer import DecoderLayer, rms_norm, rotary_tables
from toolchain.model.families import layer_prefix
from toolchain.model.spec import ModelSpec

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


def logits_of(model: Any, tokens_BS: torch.Tensor) -> torch.Tensor:
    """The model's logits, every decoder layer run by `DecoderLayer`."""
    spec = ModelSpec.from_config(model.config.to_dict() | {"architectures": [type(model).__name__]}, "config")
    tensors = model.state_dict()
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
