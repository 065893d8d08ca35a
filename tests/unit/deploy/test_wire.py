"""The wire format against tritonclient's own encoding, and values that cannot be sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor

from deploy.wire import build_request, read_outputs
from toolchain.errors import UsageError


def _metadata(batched: bool = True, outputs: tuple[str, ...] = ("text_output",)) -> pb.ModelMetadataResponse:
    metadata = pb.ModelMetadataResponse(name="ensemble")
    for name, datatype, dims in [
        ("text_input", "BYTES", [1]),
        ("max_tokens", "INT32", [1]),
        ("stream", "BOOL", [1]),
        ("temperature", "FP32", [1]),
        ("seed", "UINT64", [1]),
        ("stop_words", "BYTES", [-1]),
    ]:
        metadata.inputs.add(name=name, datatype=datatype, shape=[-1, *dims] if batched else dims)
    for name in outputs:
        metadata.outputs.add(name=name, datatype="BYTES", shape=[-1])
    return metadata


def _sent(request: pb.ModelInferRequest) -> dict[str, tuple[str, list[int], list[Any]]]:
    """Name -> data type, shape, values."""
    dtypes = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_}
    sent = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            values = deserialize_bytes_tensor(raw).tolist()
        else:
            values = np.frombuffer(raw, dtype=dtypes[tensor.datatype]).tolist()
        sent[tensor.name] = (tensor.datatype, list(tensor.shape), values)
    return sent


def test_gives_each_value_the_type_and_shape_of_the_model() -> None:
    values = {"text_input": "ü", "max_tokens": 5, "temperature": 0.5, "stop_words": ["a", b"b"]}
    request = build_request(_metadata(), values, {"stream": True}, "id-7")
    assert (request.model_name, request.id) == ("ensemble", "id-7")
    assert _sent(request) == {
        "text_input": ("BYTES", [1, 1], ["ü".encode()]),
        "max_tokens": ("INT32", [1, 1], [5]),
        "temperature": ("FP32", [1, 1], [0.5]),
        "stop_words": ("BYTES", [1, 2], [b"a", b"b"]),
        "stream": ("BOOL", [1, 1], [True]),
    }


def test_a_model_without_batches_gets_no_batch_dimension() -> None:
    request = build_request(_metadata(batched=False), {"text_input": "x", "stop_words": ["a", "b"]}, {})
    assert [list(tensor.shape) for tensor in request.inputs] == [[1], [2]]


def test_wishes_are_for_models_that_take_them() -> None:
    request = build_request(
        _metadata(), {"text_input": "x"}, {"stream": False, "exclude_input_in_output": True}
    )
    assert [tensor.name for tensor in request.inputs] == ["text_input", "stream"]


def test_asks_only_for_outputs_that_are_used() -> None:
    metadata = _metadata(outputs=("text_output", "finish_reason", "context_logits", "output_log_probs"))
    asked = [tensor.name for tensor in build_request(metadata, {"text_input": "x"}, {}).outputs]
    assert asked == ["text_output", "finish_reason"]


def test_a_model_without_text_is_refused() -> None:
    with pytest.raises(UsageError, match=r"does not answer with text\n  why: its outputs are output_ids\n"):
        build_request(_metadata(outputs=("output_ids",)), {"text_input": "x"}, {})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("text_input", None, "text_input cannot be None\n  why: it is not text; it is sent as BYTES"),
        ("text_input", 3, "it is not text"),
        ("text_input", "\udcff", "text_input is not valid UTF-8"),
        ("text_input", b"\xff", "text_input is not valid UTF-8"),
        ("stop_words", ["a", None], "it is not text"),
        ("max_tokens", 2**31, "it is out of range; it is sent as INT32"),
        ("max_tokens", 1.5, "it is not a whole number"),
        ("max_tokens", float("nan"), "cannot convert float NaN to integer"),
        ("max_tokens", "many", "invalid literal"),
        ("max_tokens", None, "NoneType"),
        ("seed", -1, "it is out of range; it is sent as UINT64"),
        ("temperature", "hot", "could not convert string to float"),
        ("temperature", None, "temperature cannot be None"),
        ("top_k", 3, r"'ensemble' takes no top_k\n  fix: it takes max_tokens, seed, stop_words, "),
    ],
)
def test_refuses_what_cannot_be_sent(name: str, value: object, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        build_request(_metadata(), {name: value}, {})


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**64 - 1),
)
def test_every_text_and_number_in_range_arrives(text: str, tokens: int, seed: int) -> None:
    request = build_request(_metadata(), {"text_input": text, "max_tokens": tokens, "seed": seed}, {})
    assert [values for _, _, values in _sent(request).values()] == [[text.encode()], [tokens], [seed]]


def test_reads_every_kind_of_output() -> None:
    response = pb.ModelInferResponse()
    response.outputs.add(name="text_output", datatype="BYTES", shape=[1, 2])
    response.outputs.add(name="log_probs", datatype="FP32", shape=[1, 1, 2])
    response.raw_output_contents.extend([b"\x02\0\0\0ab\0\0\0\0", np.float32([-0.5, -1]).tobytes()])
    outputs = read_outputs(response)
    assert outputs["text_output"].tolist() == [[b"ab", b""]]
    assert outputs["log_probs"].tolist() == [[[-0.5, -1.0]]]
