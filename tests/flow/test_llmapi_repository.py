"""The repository of the LLM API behind a real Triton, with a stand-in for tensorrt_llm (`standin/`).

What is real: Triton, every config.pbtxt, our model.py and the models around it. Nothing here says how
tensorrt_llm behaves; only that what it is given is what its interface takes, and that its answers arrive.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tritonclient.utils import InferenceServerException

from deploy.repositories.llmapi import CHECKPOINT, LlmApiSettings, render_llmapi
from deploy.server import TritonServer
from toolchain.errors import LaunchError

pytestmark = pytest.mark.triton

DEMO = Path(__file__).parents[2] / "models/demo"
STAND_IN = Path(__file__).parent / "standin/llmapi/tensorrt_llm"
TEXT = "def read_lines(path):"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.fixture(scope="module")
def server(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Any]]:
    """The gRPC endpoint, and what the stand-in's `LLM` was given."""
    place = tmp_path_factory.mktemp("llmapi")
    settings = LlmApiSettings(
        checkpoint_dir=DEMO,
        arguments={"model": CHECKPOINT, "backend": "pytorch", "tensor_parallel_size": 1},
        vocab_size=tokenizer.get_vocab_size(),
        end_ids=(tokenizer.get_vocab_size() - 1, tokenizer.get_vocab_size() - 2),  # not in TEXT
        pad_id=0,
        max_batch_size=4,
        max_queue_size=2,
    )
    render_llmapi(place / "made", settings)
    shutil.move(place / "made", place / "moved")  # it works wherever it is
    shutil.copytree(STAND_IN, place / "moved/tensorrt_llm/1/tensorrt_llm")  # where model.py looks first
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STANDIN_LOG", str(place / "log.json"))
        patch.setenv("PMIX_RANK", "0")
        with TritonServer.start(place / "moved", exit_timeout_s=8) as started:
            yield started.endpoints.grpc, json.loads((place / "log.json").read_text())


@pytest.fixture(scope="module")
def endpoint(server: tuple[str, Any]) -> str:
    return server[0]


def cycle(tokenizer: Tokenizer, count: int, begin: int = 0) -> str:
    """The stand-in's answer: the prompt's tokens over and over."""
    tokens = tokenizer.encode(TEXT).ids
    return str(tokenizer.decode([tokens[(begin + step) % len(tokens)] for step in range(count)]))


def test_without_tensorrt_llm_the_way_on_is_told(tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = LlmApiSettings(
        DEMO,
        {"model": CHECKPOINT},
        vocab_size=tokenizer.get_vocab_size(),
        end_ids=(1,),
        pad_id=0,
        max_batch_size=1,
    )
    render_llmapi(tmp_path / "repository", settings)
    with pytest.raises(LaunchError, match="tensorrt_llm is not installed here") as failed:
        TritonServer.start(tmp_path / "repository", exit_timeout_s=8)
    assert "llmbuild launch" in str(failed.value.fix)


def test_the_api_gets_the_arguments_and_no_job_of_ours(server: tuple[str, Any]) -> None:
    given = server[1]
    assert set(given["arguments"]) == {"model", "backend", "tensor_parallel_size"}
    assert given["arguments"]["model"].endswith("/moved/tensorrt_llm/1/checkpoint")
    assert given["pmix"] is None


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("stream", [False, True])
def test_text_to_text(
    ask: Callable[..., Any], endpoint: str, tokenizer: Tokenizer, model: str, stream: bool
) -> None:
    answer = ask(endpoint, model, text_input=TEXT, max_tokens=9, stream=stream)
    assert answer.text == cycle(tokenizer, 9)
    assert answer.finish_reason == "length"
    assert len(answer.responses) == (9 if stream else 1)


def test_a_request_may_name_its_end(ask: Callable[..., Any], endpoint: str, tokenizer: Tokenizer) -> None:
    end_id = tokenizer.encode(TEXT).ids[4]
    answer = ask(endpoint, "ensemble", text_input=TEXT, max_tokens=40, end_id=end_id)
    assert answer.text == cycle(tokenizer, 4)
    assert answer.finish_reason == "stop"


def test_several_sequences(ask: Callable[..., Any], endpoint: str, tokenizer: Tokenizer) -> None:
    asked = {"text_input": TEXT, "max_tokens": 5, "top_p": 0.9, "num_return_sequences": 2}
    (whole,) = ask(endpoint, "ensemble", **asked).responses
    expected = [cycle(tokenizer, 5), cycle(tokenizer, 5, begin=1)]
    assert [text.decode() for text in whole["text_output"][0]] == expected
    pieces: dict[int, str] = {0: "", 1: ""}
    for response in ask(endpoint, "ensemble", **asked, stream=True).responses:
        pieces[int(response["sequence_index"].flat[0])] += response["text_output"].flat[0].decode()
    assert list(pieces.values()) == expected


def test_stop_words_counts_and_log_probs(
    ask: Callable[..., Any], endpoint: str, tokenizer: Tokenizer
) -> None:
    asked = {"text_input": TEXT, "max_tokens": 40, "stop_words": ["path):"], "return_log_probs": True}
    counts = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    answer = ask(endpoint, "ensemble", **asked, **counts)
    assert answer.text == "def read_lines("
    assert answer.finish_reason == "stop"
    (outputs,) = answer.responses
    assert outputs["num_input_tokens"].flat[0] == len(tokenizer.encode(TEXT).ids)
    count = outputs["num_output_tokens"].flat[0]
    assert outputs["cum_log_probs"].flat[0] == pytest.approx(-0.5 * count)


def test_the_prompt_leads_where_a_request_wants_it(ask: Callable[..., Any], endpoint: str) -> None:
    answer = ask(endpoint, "ensemble", text_input=TEXT, max_tokens=3, exclude_input_in_output=False)
    assert answer.text.startswith(TEXT)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_input": ""}, "text_input is empty"),
        ({"max_tokens": 0}, "must be 1 or more"),
        ({"max_tokens": 2000}, "the request is too long"),
        ({"beam_width": 2}, "beam search is not served here"),
        ({"lora_task_id": 1}, "LoRA adapters are not served here"),
        ({"num_return_sequences": 2}, "does not allow multiple returns"),
        ({"guided_decoding_guide_type": "poem"}, "must be one of json, json_schema"),
        ({"return_context_logits": True}, "returning logits are not served here"),
    ],
)
def test_what_cannot_be_served_is_refused(
    ask: Callable[..., Any], endpoint: str, tokenizer: Tokenizer, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InferenceServerException, match=message):
        ask(endpoint, "ensemble", **({"text_input": TEXT, "max_tokens": 4} | values))
    assert ask(endpoint, "ensemble", text_input=TEXT, max_tokens=4).text == cycle(tokenizer, 4)


def test_a_stop_request_ends_a_request_with_what_it_has(
    ask: Callable[..., Any], endpoint: str, tokenizer: Tokenizer
) -> None:
    found: list[Any] = []
    asked = {"text_input": TEXT, "max_tokens": 900, "stream": True}
    running = threading.Thread(target=lambda: found.append(ask(endpoint, "ensemble", "mine", **asked)))
    running.start()
    time.sleep(0.5)
    stop = {"input_lengths": 1, "request_output_len": 1, "stop": True}
    ask(endpoint, "tensorrt_llm", "mine", **stop)
    running.join(timeout=30)
    (answer,) = found
    assert answer.finish_reason == "cancelled"
    assert 0 < len(answer.responses) < 900


def test_a_full_queue_refuses(ask: Callable[..., Any], endpoint: str) -> None:
    outcomes: list[str] = []

    def one() -> None:
        try:
            outcomes.append(ask(endpoint, "ensemble", text_input=TEXT, max_tokens=200).finish_reason)
        except InferenceServerException as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert outcomes.count("length") == 6
    assert sum("the queue is full" in outcome for outcome in outcomes) == 4
