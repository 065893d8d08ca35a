"""The front of the vLLM repository behind a real Triton, with a stand-in for the backend (`standin/`).

The stand-in answers with the sampling parameters that it was given: the tests see what vLLM would get.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from deploy.pbtxt import read_config, write_config
from deploy.repositories.vllm import CHECKPOINT, VLLM_MODEL, VllmSettings, render_vllm
from deploy.server import TritonServer

pytestmark = pytest.mark.triton

DEMO = Path(__file__).parents[2] / "models/demo"
STAND_IN = Path(__file__).parent / "standin/vllm_model/model.py"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    repository = tmp_path_factory.mktemp("vllm")
    render_vllm(repository, VllmSettings(DEMO, {"model": CHECKPOINT}, max_requests=8))
    config = read_config(repository / VLLM_MODEL / "config.pbtxt")
    config.backend = "python"
    config.instance_group[0].kind = config.instance_group[0].KIND_CPU
    write_config(config, repository / VLLM_MODEL / "config.pbtxt")
    shutil.copyfile(STAND_IN, repository / VLLM_MODEL / "1/model.py")
    with TritonServer.start(repository, exit_timeout_s=8) as server:
        yield server.endpoints.grpc


GREEDY = {"max_tokens": 4, "temperature": 0.0}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, GREEDY),
        ({"temperature": 0.5}, GREEDY),  # as upstream: greedy without top_k and top_p
        ({"top_k": 1, "temperature": 0.5}, GREEDY),
        ({"top_k": 5}, {"max_tokens": 4, "temperature": 1.0, "top_k": 5, "top_p": 1.0}),
        (
            {"top_p": 0.5, "temperature": 0.5, "seed": 7, "num_return_sequences": 2},
            {"max_tokens": 4, "n": 2, "seed": 7, "temperature": 0.5, "top_k": -1, "top_p": 0.5},
        ),
        (
            {"stop_words": ["a", "b"], "bad_words": ["c"], "min_tokens": 2, "repetition_penalty": 1.5},
            GREEDY | {"stop": ["a", "b"], "bad_words": ["c"], "min_tokens": 2, "repetition_penalty": 1.5},
        ),
        ({"end_id": 3}, GREEDY | {"stop_token_ids": [3]}),
        ({"end_id": -1}, GREEDY | {"ignore_eos": True}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_requests_become_sampling_parameters(
    ask: Callable[..., Any], endpoint: str, values: dict[str, Any], expected: dict[str, Any], stream: bool
) -> None:
    answer = ask(endpoint, "ensemble", **({"text_input": "x", "max_tokens": 4, "stream": stream} | values))
    assert json.loads(answer.text) == expected
    assert answer.finish_reason == "length"
    assert len(answer.responses) == (2 if stream else 1)
    shape = answer.responses[0]["text_output"].shape
    assert shape == (1, values.get("num_return_sequences", 1))
    if stream:
        assert "finish_reason" not in answer.responses[0]


def test_the_prompt_leads_where_a_request_wants_it(ask: Callable[..., Any], endpoint: str) -> None:
    answer = ask(endpoint, "ensemble", text_input="def", max_tokens=4, exclude_input_in_output=False)
    assert answer.text.startswith("def{")


def test_counts_are_told_to_those_who_ask(ask: Callable[..., Any], endpoint: str) -> None:
    asked = {"text_input": "def", "max_tokens": 4}
    assert "num_input_tokens" not in ask(endpoint, "ensemble", **asked).responses[0]
    answer = ask(endpoint, "ensemble", **asked, return_num_input_tokens=True)
    assert answer.responses[0]["num_input_tokens"].tolist() == [[5]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_input": ""}, "text_input is empty"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more"),
        ({"beam_width": 2}, "beam search is not served here"),
        ({"lora_task_id": 1}, "LoRA adapters are not served here"),
        ({"return_log_probs": True}, "return_log_probs is not served here"),
    ],
)
def test_what_cannot_be_passed_on_is_refused(
    ask: Callable[..., Any], endpoint: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        ask(endpoint, "ensemble", **({"text_input": "x", "max_tokens": 4} | values))
