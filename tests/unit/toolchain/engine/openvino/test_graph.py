"""The graph computes what transformers computes on the same (dequantized) weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

MAX_LOGIT_DIFF = 5e-5
"""Largest difference of any logit, in f32. Logits are as large as 10; differences of 2e-5 are seen."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
CASES = [
    pytest.param(family, dtype, scheme, id=f"{family}-{name}")
    for family in FAMILIES
    for name, dtype, scheme in (
        ("f32", torch.float32, None),
        ("bf16", torch.bfloat16, None),
        ("int4", torch.bfloat16, "int4"),
    )
]


def token_ids(vocab: int, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab, (batch, length))


@pytest.mark.parametrize(("family", "dtype", "scheme"), CASES)
def test_logits_equal_transformers(family, dtype, scheme, tiny, run_stateful):
    model = tiny(family, dtype, scheme)
    ids = token_ids(503, 2, 48)
    expected = model.logits(ids)
    ir_dir = model.build()
    assert np.abs(run_stateful(ir_dir, ids, [48]) - expected).max() < MAX_LOGIT_DIFF
    assert np.abs(run_stateful(ir_dir, ids, [30, *[1] * 18]) - expected).max() < MAX_LOGIT_DIFF


@pytest.mark.parametrize(("family", "dtype", "scheme"), CASES)
def test_continuous_batching_equals_transformers(family, dtype, scheme, tiny, run_paged):
    """Prompts of mixed lengths in one batch, in chunks of 16 tokens, also when found in the prefix cache."""
    model = tiny(family, dtype, scheme)
    ids = token_ids(503, 4, 80).tolist()
    prompts = [ids[0][:5], ids[1], ids[1][:64] + ids[2][:7], ids[3][:33]]
    ir_dir = model.build()
    for rounds in (1, 2):
        answers = run_paged(ir_dir, prompts, 12, chunk=16, rounds=rounds)
        for prompt, answer in zip(prompts, answers, strict=True):
            assert len(answer.tokens) == 12
            assert answer.tokens == model.greedy(prompt, answer.tokens)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}, id="one-head"),
        pytest.param({"num_attention_heads": 4, "num_key_value_heads": 4}, id="multi-head"),
        pytest.param({"num_key_value_heads": 1}, id="multi-query"),
        pytest.param({"num_hidden_layers": 1}, id="one-layer"),
        pytest.param({"vocab_size": 1003}, id="odd-vocabulary"),
        pytest.param({"attention_bias": True, "mlp_bias": True}, id="all-biases"),
        pytest.param({"tie_word_embeddings": True}, id="tied"),
        pytest.param(
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, id="rope-linear"
        ),
        pytest.param(
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, id="rope-dynamic"
        ),
        pytest.param(
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
            id="rope-yarn",
        ),
    ],
)
def test_edges_of_the_architecture(config, tiny, run_stateful, run_paged):
    model = tiny("llama", **config)
    vocab = config.get("vocab_size", 503)
    ids = token_ids(vocab, 1, 40)
    ids[0, 0] = vocab - 1
    ir_dir = model.build()
    assert np.abs(run_stateful(ir_dir, ids, [39, 1]) - model.logits(ids)).max() < MAX_LOGIT_DIFF
    [answer] = run_paged(ir_dir, ids.tolist(), 8)
    assert answer.tokens == model.greedy(ids[0].tolist(), answer.tokens)
