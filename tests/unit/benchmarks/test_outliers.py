from pathlib import Path

import torch

from benchmarks.model import DEMO
from benchmarks.quantization.outliers import with_outliers


def test_the_model_with_outliers_computes_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    with_outliers(DEMO, tmp_path / "model")
    tokens = torch.arange(200).view(2, 100)
    with torch.no_grad():
        plain, other = (
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            for path in (DEMO, tmp_path / "model")
        )
        torch.testing.assert_close(other(tokens).logits, plain(tokens).logits, rtol=1e-4, atol=1e-4)
    ratio = other.model.layers[0].input_layernorm.weight / plain.model.layers[0].input_layernorm.weight
    assert ratio.max() >= 8
    assert (ratio > 1).float().mean() < 0.05
