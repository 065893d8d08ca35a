"""A tiny random Llama with a byte-level tokenizer, as checkpoint and as engine, for a real server."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
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


@dataclass
class Answer:
    """What one request got: the outputs of each response by name."""

    responses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(response["text_output"].flat[0].decode() for response in self.responses)

    @property
    def finish_reason(self) -> str:
        return str(self.responses[-1]["finish_reason"].flat[0].decode())


@pytest.fixture(scope="session")
def ask() -> Callable[..., Answer]:
    """Ask a model of the front (`tensorrt_llm_bls` if none is named); raises the server's error."""
    import numpy as np
    import tritonclient.grpc as grpc
    from tritonclient.utils import np_to_triton_dtype

    from deploy import tensors

    every = (*tensors.TEXT_INPUTS, *tensors.DRAFT_INPUTS, *tensors.ENGINE_INPUTS)
    types = {tensor.name: tensor.type for tensor in every}
    kinds = {"STRING": object, "BOOL": bool, "FP32": np.float32, "INT32": np.int32, "UINT64": np.uint64}

    def request(
        endpoint: str, model: str = "tensorrt_llm_bls", request_id: str = "", **values: Any
    ) -> Answer:
        inputs = []
        for name, value in values.items():
            row = value if isinstance(value, list) else [value]
            array = np.array([row], dtype=kinds[types[name]])
            tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        arrived: queue.Queue[tuple[Any, Any]] = queue.Queue()
        answer = Answer()
        with grpc.InferenceServerClient(endpoint) as client:
            client.start_stream(lambda result, error: arrived.put((result, error)))
            client.async_stream_infer(model, inputs, request_id=request_id, enable_empty_final_response=True)
            while True:
                result, error = arrived.get(timeout=60)
                if error is not None:
                    raise error
                response = result.get_response()
                if response.outputs:
                    outputs = {output.name: result.as_numpy(output.name) for output in response.outputs}
                    answer.responses.append(outputs)
                if response.parameters["triton_final_response"].bool_param:
                    return answer

    return request
