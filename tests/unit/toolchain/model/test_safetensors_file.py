"""Damaged safetensors files: every one a ModelError, never another exception."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save, save_file

from toolchain.errors import ModelError
from toolchain.model.safetensors_file import read_bytes, read_header

GOOD = save(
    {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)}
)


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with any header."""
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    return path


def entry(dtype: Any = "U8", shape: Any = (4,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_header_in_order_of_bytes(tmp_path: Path) -> None:
    (path := tmp_path / "x").write_bytes(GOOD)
    header = read_header(path)
    assert [(name, e.dtype, e.shape, e.location.nbytes) for name, e in header.items()] == [
        ("a", "F32", (2, 3), 24),
        ("b", "BF16", (5,), 10),
    ]
    buffer = bytearray(8)
    read_bytes(header["a"].location, memoryview(buffer), start=16)
    assert np.frombuffer(buffer, np.float32).tolist() == [4.0, 5.0]


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 1))
def test_truncated_at_any_byte(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.safetensors"
    path.write_bytes(GOOD[:length])
    with pytest.raises(ModelError, match="the weights file is truncated"):
        read_header(path)


@settings(deadline=None)
@given(st.integers(0, len(GOOD) - 35), st.integers(0, 255))
def test_any_changed_byte_of_the_header(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(GOOD[:position] + bytes([value]) + GOOD[position + 1 :])
    try:
        header = read_header(path)
    except ModelError:
        return
    # What passes is coherent: the tensors fill the file.
    assert sum(e.location.nbytes for e in header.values()) == 34


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.safetensors"
    path.write_bytes(content)
    with suppress(ModelError):
        assert read_header(path) == {}  # the only valid file this short


@pytest.mark.parametrize(
    ("header", "data", "expected"),
    [
        (b"\xff" * 8, b"", "its header is not JSON"),
        (b"{", b"", "its header is not JSON"),
        (b"[" * 100_000, b"", "its header is not JSON"),
        ([], b"", "its header is not a JSON object"),
        ({"t": 1}, b"", "the entry of t has no proper shape and data_offsets"),
        ({"t": entry(shape="4")}, b"1234", "the entry of t has no proper shape"),
        ({"t": entry(shape=[-4])}, b"1234", "the entry of t has no proper shape"),
        ({"t": entry(shape=[True])}, b"1234", "the entry of t has no proper shape"),
        ({"t": entry(offsets=[0, 4, 8])}, b"1234", "the entry of t has no proper shape and data_offsets"),
        ({"t": entry(offsets=[4, 0])}, b"1234", "t has -4 bytes, which is not U8 of shape"),
        ({"t": entry(shape=[5])}, b"1234", r"t has 4 bytes, which is not U8 of shape \[5\]"),
        ({"t": entry(offsets=[1, 5])}, b"12345", "t begins at byte"),
        ({"t": entry(), "u": entry()}, b"1234", "u begins at byte"),
        ({"t": entry()}, b"12345", "its header describes .* bytes, the file has"),
        ({"t": entry()}, b"123", "the weights file is truncated"),
        ({"t": entry(dtype="F4")}, b"1234", "the tensor t has the unknown dtype 'F4'"),
        ({"t": entry(dtype=["U8"])}, b"1234", "the tensor t has the unknown dtype"),
        (
            b'{"t":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            b"12",
            "the tensor t is stored twice",
        ),
    ],
)
def test_damaged_header(tmp_path: Path, header: Any, data: bytes, expected: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){expected}"):
        read_header(write(tmp_path / "x.safetensors", header, data))


def test_header_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match="beyond the format's limit"):
        read_header(path)


def test_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n")
    with pytest.raises(ModelError, match=r"(?s)this is a Git LFS pointer.*git lfs pull"):
        read_header(path)


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read the weights: No such file"):
        read_header(tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="cannot read the weights: Is a directory"):
        read_header(tmp_path)


def test_shortened_after_opening(tmp_path: Path) -> None:
    (path := tmp_path / "x").write_bytes(GOOD)
    location = read_header(path)["b"].location
    path.write_bytes(GOOD[:-1])
    with pytest.raises(ModelError, match="became shorter while it was read"):
        read_bytes(location, memoryview(bytearray(location.nbytes)))


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"t": torch.zeros(0, 3), "u": torch.zeros(())}, path, metadata={"format": "pt"})
    assert {name: e.shape for name, e in read_header(path).items()} == {"t": (0, 3), "u": ()}
    with safe_open(path, "pt") as reader:
        assert set(reader.keys()) == {"t", "u"}
