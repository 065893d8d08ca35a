"""Speculative decoding from the recipe to a real Triton: the same greedy answers, in fewer steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.server import TritonServer
from toolchain.engine.openvino.answer import answer
from toolchain.errors import PlanError
from toolchain.pipeline.build import build_recipe
from toolchain.pipeline.store import Store
from toolchain.recipe import load_recipe

pytestmark = [pytest.mark.triton, pytest.mark.slow]

TEXTS = ("def main():\n    import os\n", "for i in range(10):\n    print(i)\nfor i in range(10):\n")
TOKENS = 48


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Build the demo model, exactly and unquantized, with `speculative`; returns its repository."""
    root = tmp_path_factory.mktemp("speculative")

    def built(name: str, **speculative: Any) -> Path:
        file = root / f"{name}.yaml"
        models = Path(__file__).parents[2] / "models"
        fields = "".join(
            f"\n    {key}: {str(value).format(models=models)}" for key, value in speculative.items()
        )
        file.write_text(
            f"schema: 1\nname: {name}\nmodel: {{source: {models}/demo}}\nquantization: {{method: none}}\n"
            f"engine:\n  precision: exact\n  max_seq_len: 512\n  max_batch_size: 4\n  speculative: {fields}\n"
        )
        with Store.open(root / "store") as store:
            return build_recipe(load_recipe(file), out=root, store=store).artifact / "repository"

    return built


@pytest.mark.parametrize(
    "speculative",
    [
        {"method": "draft_model", "source": "{models}/demo-draft"},
        {"method": "prompt_lookup", "max_draft_len": 3},
    ],
    ids=["draft_model", "prompt_lookup"],
)
def test_greedy_answers_are_the_same(build: Callable[..., Path], speculative: dict[str, Any]) -> None:
    import tritonclient.grpc as grpc
    from tokenizers import Tokenizer

    repository = build(speculative["method"].replace("_", "-"), **speculative)
    tokenizer = Tokenizer.from_file(str(repository / "preprocessing/1/tokenizer/tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in TEXTS]
    wanted = answer(repository, prompts, TOKENS, [])
    with TritonServer.start(repository) as server:
        with grpc.InferenceServerClient(server.endpoints.grpc) as client:
            for prompt, tokens in zip(prompts, wanted, strict=True):
                outputs = _ask(client, prompt)
                assert outputs["output_ids"][0, 0].tolist() == tokens
                assert outputs["total_accepted_draft_tokens"].item() > 0
                if speculative["method"] == "draft_model":
                    accepted, drafted = (
                        outputs[name].item() for name in ("total_accepted_draft_tokens", "total_draft_tokens")
                    )
                    assert outputs["acceptance_rate"].item() == pytest.approx(accepted / drafted)
                    assert 0 < accepted <= drafted
                else:
                    assert "acceptance_rate" not in outputs


def test_a_draft_of_another_vocabulary_is_refused(
    build: Callable[..., Path], tiny_model: Any, tmp_path: Path
) -> None:
    with pytest.raises(PlanError, match="the draft has 608 tokens in its vocabulary, the model 4096"):
        build("stranger", method="draft_model", source=tiny_model.checkpoint_dir)


def _ask(client: Any, prompt: list[int]) -> dict[str, np.ndarray]:
    """The one response to a greedy request that does not stream."""
    import queue

    import tritonclient.grpc as grpc
    from tritonclient.utils import np_to_triton_dtype

    values = {
        "input_ids": np.array([prompt], dtype=np.int32),
        "input_lengths": np.array([[len(prompt)]], dtype=np.int32),
        "request_output_len": np.array([[TOKENS]], dtype=np.int32),
        "end_id": np.array([[-1]], dtype=np.int32),
        "return_perf_metrics": np.array([[True]]),
    }
    inputs = []
    for name, array in values.items():
        inputs.append(grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("tensorrt_llm", inputs)
    result, error = answers.get(timeout=60)
    client.stop_stream()
    assert error is None
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}
