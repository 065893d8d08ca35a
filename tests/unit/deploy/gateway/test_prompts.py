from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.gateway.errors import ApiError
from deploy.gateway.prompts import Prompts
from toolchain.errors import UsageError

DEMO = Path(__file__).parents[4] / "models/demo"


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return Prompts(DEMO)


@given(text=st.text(), count=st.integers(1, 12))
def test_splitting_loses_nothing(prompts: Prompts, text: str, count: int) -> None:
    pieces = prompts.split(text, count)
    assert len(pieces) == count
    assert "".join(pieces) == text


def test_splits_as_the_tokenizer_does(prompts: Prompts) -> None:
    count = prompts.count_answer("def read(path):")
    pieces = prompts.split("def read(path):", count)
    assert len(pieces) == count > 3
    assert all(pieces)
    assert prompts.split("def read(path):", count + 1)[:-1] == [""] * count


def test_counts_what_the_template_makes(prompts: Prompts) -> None:
    rendered = prompts.chat([{"role": "user", "content": "Hi"}])
    assert rendered == "<|user|>Hi<|end|><|assistant|>"
    assert prompts.count(rendered) == 4 + prompts.count_answer("Hi")  # and the begin of text


def test_messages_that_the_template_refuses_are_a_bad_request(prompts: Prompts) -> None:
    with pytest.raises(ApiError, match="the chat template refuses these messages: unknown role") as caught:
        prompts.chat([{"role": "robot", "content": "x"}])
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_no_tokenizer_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the tokenizer cannot be loaded"):
        Prompts(tmp_path)
