"""Tiny random models of every family, made as transformers makes them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

# The models are too small to gain from a second thread, and on a busy machine each would wait for the other.
torch.set_num_threads(1)

WIDTHS: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
}


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Any]:
    """A function (family, **config) -> a transformers model with every tensor random, norms included."""
    import transformers

    def make(family: str, **changes: Any) -> Any:
        config_class = getattr(transformers, f"{family}Config")
        model_class = getattr(transformers, f"{family}ForCausalLM")
        torch.manual_seed(1)
        model = model_class(config_class(**(WIDTHS | changes))).eval()
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if name.endswith("norm.weight"):
                    tensor.uniform_(0.5, 1.5)
                elif name.endswith("bias"):
                    tensor.normal_(0, 0.2)
                else:
                    tensor.normal_(0, 0.08)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A tokenizer of 96 tokens: one a byte of printable ASCII and newline, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<s>": 0, **{chr(32 + code): 1 + code for code in range(94)}, "\n": 95}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")
    wrapped.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    return wrapped


@pytest.fixture
def save_model(tmp_path: Path, make_model: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., Path]:
    """A function (family, dtype, **config) -> a model directory with a tokenizer."""

    def save(family: str = "Llama", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
        directory = tmp_path / f"source-{family}-{len(list(tmp_path.iterdir()))}"
        make_model(family, **changes).to(dtype).save_pretrained(directory)
        tiny_tokenizer.save_pretrained(directory)
        return directory

    return save


@pytest.fixture
def read_json() -> Callable[[Path], Any]:
    return lambda path: json.loads(path.read_text())
