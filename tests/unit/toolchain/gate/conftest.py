"""Tiny random models, and a quantized checkpoint of each."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

# The models are too small to gain from a second thread.
torch.set_num_threads(1)

WIDTHS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}


@pytest.fixture
def save_model(tmp_path: Path) -> Callable[..., Path]:
    """A function (family, **config) -> the directory of a bfloat16 model with every tensor random."""
    import transformers

    def save(family: str = "Llama", **changes: Any) -> Path:
        config = getattr(transformers, f"{family}Config")(**(WIDTHS | changes))
        torch.manual_seed(1)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith("norm.weight"):
                    tensor.uniform_(0.5, 1.5)
                else:
                    tensor.normal_(0, 0.12)
        directory = tmp_path / f"source-{len(list(tmp_path.iterdir()))}"
        model.to(torch.bfloat16).save_pretrained(directory)
        return directory

    return save


@pytest.fixture
def quantized(tmp_path: Path) -> Callable[[Path], Path]:
    """A function: the directory of a model -> that of its AWQ checkpoint."""
    from quantize.calibration import Calibration
    from quantize.driver import quantize_model
    from quantize.methods.awq import Awq

    def quantize(source: Path) -> Path:
        tokens = torch.randint(96, (4, 32), generator=torch.Generator().manual_seed(0))
        out = tmp_path / f"{source.name}-awq"
        quantize_model(
            source,
            out,
            tmp_path / f"{source.name}-work",
            method=Awq(group_size=32),
            calibration=Calibration("r", tokens, 0),
        )
        return out

    return quantize
