"""Records of files, by number."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolchain.errors import DataError
from toolchain.text import records
from toolchain.text.records import open_records

Write = Callable[[str, Any], Path]
ONCE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)


def values(path: Path, piece: int = 100, column: str | None = None) -> list[Any]:
    reader = open_records(path, column=column, piece=piece)
    return [record.value for record in reader.read(range(len(reader)))]


def zstd(data: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return bytes(packed.getvalue())


@given(texts=st.lists(TEXTS, min_size=1, max_size=20), data=st.data())
@ONCE
@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_records_in_any_order(suffix: str, texts: list[str], data: Any, write: Write) -> None:
    path = write(f"a.{suffix}", [{"text": text} for text in texts])
    reader = open_records(path, column=None, piece=100)
    numbers = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=30))
    assert len(reader) == len(texts)
    assert [record.value["text"] for record in reader.read(numbers)] == [texts[n] for n in numbers]


@given(text=st.text(st.characters(codec="utf-8"), max_size=300), piece=st.integers(1, 50))
@ONCE
def test_pieces_of_text_lose_nothing_and_end_with_lines(text: str, piece: int, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    text = text.removeprefix("\ufeff")
    path.write_bytes(text.encode())
    pieces = values(path, piece)
    assert "".join(pieces) == text
    assert all(len(part) >= piece and part.endswith("\n") for part in pieces[:-1])


@given(text=st.text("aé漢🐍", min_size=1, max_size=80))
@ONCE
def test_a_line_too_long_to_hold_is_cut_between_characters(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_LINE", 16)
    path = tmp_path / "a.txt"
    path.write_text(text, "utf-8")
    pieces = values(path, 1)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 16


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gz", "zst"])
@pytest.mark.parametrize("form", ["jsonl", "json", "txt"])
def test_packed_files(form: str, pack: Callable[[bytes], bytes], write: Write) -> None:
    plain = write(f"a.{form}", [{"text": "one"}, {"text": "two"}])
    suffix = "gz" if pack is gzip.compress else "zst"
    assert values(write(f"b.{form}.{suffix}", pack(plain.read_bytes()))) == values(plain)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_file_that_is_not_packed(suffix: str, write: Write) -> None:
    with pytest.raises(DataError, match=rf"a\.jsonl\.{suffix}: the file cannot be unpacked"):
        values(write(f"a.jsonl.{suffix}", b'{"text": "one"}\n' * 100))
    with pytest.raises(DataError, match="cannot be unpacked"):
        values(write(f"b.txt.{suffix}", gzip.compress(b"text" * 1000)[:-20] if suffix == "gz" else b"(\xb5"))


def test_json_may_be_lines(write: Write) -> None:
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    assert values(write("a.json", lines)) == values(write("a.jsonl", lines))
    assert values(write("b.json", b" \n [1, 2]")) == [1, 2]


def test_a_byte_order_mark_is_no_text(write: Write) -> None:
    for name in ("a.jsonl", "a.json", "a.txt"):
        plain = json.dumps({"text": "x"}).encode() + b"\n"
        assert values(write(name, b"\xef\xbb\xbf" + plain)) == values(write(f"b-{name}", plain))
    assert values(write("c.json", b"\xef\xbb\xbf[1]")) == [1]


def test_windows_lines(write: Write) -> None:
    assert values(write("a.jsonl", b'{"text": "one"}\r\n{"text": "two"}\r\n')) == [
        {"text": "one"},
        {"text": "two"},
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n \n', "a.jsonl:2: the line is empty"),
        (
            "a.jsonl",
            b'{"a": 1}\n{"a": caf\xe9}\n',
            "a.jsonl:2: the data is not UTF-8\n  why: byte 18 is",
        ),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: the line is not JSON"),
        ("a.json", b"[1, 2", "a.json: the file is not JSON"),
        ("a.json", b'{\n "a": 1\n}', "a.json:1: the line is not JSON"),
        ("a.txt", b"one\ntwo\ncaf\xe9\n", "a.txt:3: the data is not UTF-8\n  why: byte 11 is 0xe9"),
        ("a.txt", "one".encode("utf-16"), "a.txt:1: the data is not UTF-8\n  why: byte 0 is 0xff"),
        ("a.parquet", b"PAR1", "a.parquet: the file is not Parquet, or is damaged"),
        ("a.parquet", b"", "a.parquet: the file is not Parquet, or is damaged"),
    ],
)
def test_malformed(name: str, content: bytes, said: str, write: Write) -> None:
    with pytest.raises(DataError, match=said):
        values(write(name, content))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet", "a.txt.gz", "a.jsonl.zst"])
def test_what_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data cannot be read: No such file"):
        values(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match=r"cannot be read|not Parquet"):
        values(tmp_path / name)
