"""A tiny random Llama with a byte-level tokenizer, as checkpoint and as engine, for a real server."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CONTEXT = 4096
END_OF_TEXT = "<|end|>"


@dataclass(frozen=True)
class TinyModel:
    """What the tests know of the model behind the server."""

    checkpoint_dir: Path
    engine_dir: Path
    tokenizer: Tokenizer
    reference: Any  # transformers' model of the same weights, f32
    end_id: int
    vocab_size: int

    def greedy(self, prompt: list[int], max_tokens: int) -> list[int]:
        """What transformers generates: token ids without the prompt and without the end token."""
        import torch

        output = self.reference.generate(
            torch.tensor([prompt]), max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
        )[0, len(prompt) :].tolist()
        return output[: output.index(self.end_id)] if self.end_id in output else output


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Two layers, 128 wide, about 600 tokens; f32 weights that make greedy choices unambiguous."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("openvino_genai")
    from transformers import LlamaConfig, LlamaForCausalLM

    from toolchain.engine.openvino import build_ir

    torch.set_num_threads(2)
    checkpoint_dir = tmp_path_factory.mktemp("tiny-llama")
    tokenizer = _write_tokenizer(checkpoint_dir)
    end_id = tokenizer.token_to_id(END_OF_TEXT)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 8,  # padded, as real models are
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        bos_token_id=end_id,
        eos_token_id=end_id,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    reference = LlamaForCausalLM(config).eval()
    reference.save_pretrained(checkpoint_dir)
    engine_dir = tmp_path_factory.mktemp("engine")
    build_ir(checkpoint_dir, engine_dir)
    return TinyModel(checkpoint_dir, engine_dir, tokenizer, reference, end_id, config.vocab_size)


def _write_tokenizer(directory: Path) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")] * 2, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT).save_pretrained(directory)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


@pytest.fixture(scope="session")
def render(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Render a repository for the tiny model in exact arithmetic; keywords are `RepositorySettings`."""
    from deploy.repositories.openvino import RepositorySettings, render_openvino
    from toolchain.engine.openvino import plugin_properties

    def make(**settings: Any) -> Path:
        repository = tmp_path_factory.mktemp("repository")
        given = {
            "engine_dir": tiny_model.engine_dir,
            "tokenizer_dir": tiny_model.checkpoint_dir,
            "vocab_size": tiny_model.vocab_size,
            "end_ids": (tiny_model.end_id,),
            "pad_id": tiny_model.end_id,
            "max_seq_len": CONTEXT,
            "plugin_properties": plugin_properties("exact", "auto", num_threads=2),
        }
        render_openvino(repository, RepositorySettings(**(given | settings)))
        return repository

    return make
