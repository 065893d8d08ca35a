"""Sliding windows survive the rewrite to paged attention: prompts longer than the window, token by token.

The rewrite drops the mask, and takes the window only from a mask that is spelled the way it knows.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

WINDOW = 16
MAX_LOG_PROB_DIFF = 5e-5


def paged_log_prob_diff(model, ir_dir, run_paged, length=60):
    """The largest difference of a prompt token's log-probability from transformers', in the paged form."""
    ids = np.random.default_rng(0).integers(0, 503, (1, length))
    log_probs = torch.tensor(model.logits(ids)[0]).log_softmax(-1)
    expected = log_probs[torch.arange(length - 1), torch.tensor(ids[0, 1:])].numpy()
    [found] = run_paged(ir_dir, ids.tolist(), 1, echo=True)
    assert found.tokens[:length] == ids[0].tolist()
    return np.abs(np.array(found.log_probs[1:length]) - expected).max()


@pytest.mark.parametrize(
    ("family", "config"),
    [
        pytest.param("mistral", {"sliding_window": WINDOW}, id="every-layer"),
        pytest.param(
            "qwen2",
            {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1},
            id="upper-layers",
        ),
        pytest.param(
            "qwen3",
            {
                "sliding_window": WINDOW,
                "use_sliding_window": True,
                "num_hidden_layers": 3,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
            id="alternating",
        ),
    ],
)
def test_window_holds_in_both_forms(family, config, tiny, run_stateful, run_paged):
    model = tiny(family, **config)
    ids = np.random.default_rng(1).integers(0, 503, (1, 60))
    ir_dir = model.build()
    assert np.abs(run_stateful(ir_dir, ids, [50, *[1] * 10]) - model.logits(ids)).max() < 5e-5
    assert paged_log_prob_diff(model, ir_dir, run_paged) < MAX_LOG_PROB_DIFF


def test_another_spelling_of_the_window_is_lost(tiny, run_stateful, run_paged, monkeypatch):
    """Why the mask is spelled as it is: the same mask, said plainly, is right until it is paged."""
    from openvino import opset13 as ops

    model = tiny("mistral", sliding_window=WINDOW)
    monkeypatch.setattr(ops, "bitwise_and", ops.logical_and)
    ir_dir = model.build()
    ids = np.random.default_rng(1).integers(0, 503, (1, 60))
    assert np.abs(run_stateful(ir_dir, ids, [60]) - model.logits(ids)).max() < 5e-5
    assert paged_log_prob_diff(model, ir_dir, run_paged) > 0.1
