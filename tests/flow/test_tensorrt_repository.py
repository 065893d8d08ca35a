"""The repository of TensorRT-LLM engines behind a real Triton, with a stand-in for the engine's backend.

What is real: every config.pbtxt, `ensemble`, `preprocessing`, `postprocessing` and `tensorrt_llm_bls`. The
stand-in (`standin/`) says which tokens must come; it says nothing of TensorRT-LLM.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from deploy.client import Chunk, Client
from deploy.pbtxt import read_config, write_config
from deploy.repositories.tensorrt import DraftEngine, TensorRTSettings, render_tensorrt
from deploy.server import TritonServer

pytestmark = pytest.mark.triton

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).parent / "standin/engine/model.py"
TOKENIZER = ROOT / "models/demo"
TEXT = "def read_lines(path):"


def next_token(tokens: list[int], vocab_size: int) -> int:
    """As the stand-in's."""
    before = tokens[-2] if len(tokens) > 1 else 1
    return (tokens[-1] * 31 + before * 17 + 11) % vocab_size


class Model:
    """What the stand-in must answer."""

    def __init__(self) -> None:
        self.tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
        self.vocab_size = self.tokenizer.get_vocab_size()
        # Tokens that come some way into the answer, so that each ends an answer of its own.
        self.end_ids = tuple(self._free(TEXT, 40)[index] for index in (30, 25))

    def _free(self, prompt: str, count: int) -> list[int]:
        tokens = self.tokenizer.encode(prompt).ids
        start = len(tokens)
        for _ in range(count):
            tokens.append(next_token(tokens, self.vocab_size))
        return tokens[start:]

    def answer(self, prompt: str, max_tokens: int) -> list[int]:
        tokens = self._free(prompt, max_tokens)
        ends = [tokens.index(end) for end in self.end_ids if end in tokens]
        first = min(ends, default=max_tokens)
        # The end id itself is left out; one that is a stop word is kept.
        kept = first + 1 if first < max_tokens and tokens[first] != self.end_ids[0] else first
        return tokens[:kept]

    def text(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def endpoint(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engine = tmp_path_factory.mktemp("engine")
    facts = {
        "pretrained_config": {"vocab_size": model.vocab_size, "mapping": {"world_size": 1}},
        "build_config": {"max_beam_width": 1, "speculative_decoding_mode": 2, "max_draft_len": 4},
    }
    (engine / "config.json").write_text(json.dumps(facts))
    (engine / "rank0.engine").write_bytes(b"engine")
    repository = tmp_path_factory.mktemp("repository")
    settings = TensorRTSettings(
        engine_dir=engine,
        tokenizer_dir=TOKENIZER,
        vocab_size=model.vocab_size,
        end_ids=model.end_ids,
        pad_id=0,
        version="1.2.1",
        max_batch_size=4,
        draft=DraftEngine("/engines/draft"),
    )
    render_tensorrt(repository, settings)
    for name, skew in (("tensorrt_llm", 0), ("tensorrt_llm_draft", 3)):
        config = read_config(repository / name / "config.pbtxt")
        config.backend = "python"
        config.parameters["vocab_size"].string_value = str(model.vocab_size)
        config.parameters["skew"].string_value = str(skew)
        write_config(config, repository / name / "config.pbtxt")
        shutil.copyfile(STAND_IN, repository / name / "1/model.py")
    with TritonServer.start(repository, exit_timeout_s=8) as server:
        yield server.endpoints.grpc


@pytest.mark.parametrize("name", ["ensemble", "tensorrt_llm_bls"])
def test_a_whole_answer(endpoint: str, model: Model, name: str) -> None:
    with Client(endpoint) as client:
        chunks = client.generate(TEXT, max_tokens=20, stream=False, model=name)
        assert "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk)) == model.text(
            model.answer(TEXT, 20)
        )


def test_every_end_id_ends_an_answer(ask: Callable[..., Any], endpoint: str, model: Model) -> None:
    expected = model.answer(TEXT, 40)
    assert len(expected) == 26  # by the second, which goes along as a stop word
    assert ask(endpoint, text_input=TEXT, max_tokens=40, stream=False).text == model.text(expected)


def test_a_streamed_answer_loses_no_character(ask: Callable[..., Any], endpoint: str, model: Model) -> None:
    answer = ask(endpoint, text_input=TEXT, max_tokens=24, stream=True)
    expected = model.text(model.answer(TEXT, 24))
    assert len(answer.responses) >= 24
    assert answer.text == expected


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("drafts", [1, 3, 4])
@pytest.mark.parametrize("max_tokens", [1, 2, 24, 40])
def test_drafts_change_no_token(
    ask: Callable[..., Any], endpoint: str, model: Model, drafts: int, max_tokens: int, stream: bool
) -> None:
    asked = {"text_input": TEXT, "max_tokens": max_tokens, "stream": stream}
    answer = ask(endpoint, **asked, num_draft_tokens=drafts)
    assert answer.text == model.text(model.answer(TEXT, max_tokens))
    if stream and max_tokens == 24:
        assert len(answer.responses) < 24  # a round accepts several tokens


def test_without_drafts_in_a_request_the_target_answers_alone(
    ask: Callable[..., Any], endpoint: str, model: Model
) -> None:
    answer = ask(endpoint, text_input=TEXT, max_tokens=12, stream=False, num_draft_tokens=0)
    assert answer.text == model.text(model.answer(TEXT, 12))
