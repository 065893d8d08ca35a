from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deploy.gateway.answers import sampling_values
from deploy.gateway.errors import from_validation
from deploy.gateway.schema import ChatRequest, CompletionRequest

COMPLETION: dict[str, Any] = {"model": "m", "prompt": "x"}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def completion(**changes: Any) -> CompletionRequest:
    return CompletionRequest.model_validate_json(json.dumps(COMPLETION | changes))


def chat(**changes: Any) -> ChatRequest:
    return ChatRequest.model_validate_json(json.dumps(CHAT | changes))


def test_what_asks_for_nothing_passes() -> None:
    idle = {"tools": [], "logit_bias": {}, "echo": False, "best_of": 1, "suffix": None, "top_logprobs": 0}
    assert completion(**idle, user="me", metadata={"a": "b"}) == completion()
    assert chat(**idle, n=None, stop=None, stream=None, temperature=None) == chat()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", [{}]),
        ("logit_bias", {"5": 1}),
        ("echo", True),
        ("best_of", 2),
        ("suffix", "x"),
        ("min_p", 0.1),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=f"{name}: not supported here") as caught:
        completion(**{name: value})
    assert from_validation(caught.value).status == 400


def test_types_are_strict_and_every_problem_is_told() -> None:
    with pytest.raises(ValidationError) as caught:
        completion(max_tokens="3", temperature=True, stream="yes", seed=1.5, stop=7)
    error = from_validation(caught.value)
    assert error.param == "stream"
    for name in ("max_tokens", "temperature", "stream", "seed", "stop"):
        assert f"{name}" in error.message
    assert completion(temperature=1, max_tokens=3).temperature == 1.0


def test_choices_are_bounded_together() -> None:
    assert completion(prompt=["a"] * 64, n=2).prompts == ["a"] * 64
    with pytest.raises(ValidationError, match="prompts times n must be at most 128"):
        completion(prompt=["a"] * 65, n=2)


def test_a_message_becomes_role_and_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = chat(messages=[{"role": "developer", "content": parts}]).messages[0]
    assert message.to_template() == {"role": "system", "content": "ab"}


def test_a_response_format_becomes_a_guide() -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    made = chat(response_format=wanted).response_format
    assert made is not None
    assert made.guide == ("json_schema", json.dumps(schema))
    free = chat(response_format={"type": "json_object"}).response_format
    assert free is not None
    assert free.guide == ("json", "")
    plain = chat(response_format={"type": "text"}).response_format
    assert plain is not None
    assert plain.guide is None


def test_sampling_is_openai_s_where_the_request_is_silent() -> None:
    values = sampling_values(completion())
    assert values["temperature"] == values["top_p"] == 1.0
    assert values["seed"] != sampling_values(completion())["seed"]
    greedy = sampling_values(completion(temperature=0, seed=-1, n=1, stop="a"))
    assert greedy == {"top_k": 1, "seed": 2**64 - 1, "stop_words": ["a"]}
    assert sampling_values(completion(seed=5, top_k=0, n=3, top_p=0.5)) == {
        "temperature": 1.0,
        "top_p": 0.5,
        "seed": 5,
        "num_return_sequences": 3,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    sorted({*CompletionRequest.model_fields, *ChatRequest.model_fields, "tools", "echo"})
)


@given(st.dictionaries(FIELDS, JSON))
def test_any_json_is_taken_or_refused(changes: dict[str, Any]) -> None:
    for kind, base in ((CompletionRequest, COMPLETION), (ChatRequest, CHAT)):
        try:
            kind.model_validate_json(json.dumps(base | changes))
        except ValidationError as error:
            json.dumps(from_validation(error).to_json(), allow_nan=False).encode()


@given(st.binary())
def test_any_bytes_are_taken_or_refused(body: bytes) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate_json(body)
    assert from_validation(caught.value).status == 400
