"""Held-out text to windows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from toolchain.errors import DataError, ModelError, UsageError
from toolchain.gate.text import Windows, load_windows
from toolchain.text.files import TextFiles

DEMO = Path(__file__).parents[4] / "models" / "demo"
TEXT = "def read_lines(path):\n    return path.read_text().splitlines()\n" * 8


def load(path: Path, **changes: Any) -> Windows:
    return load_windows(
        TextFiles.local(path), DEMO, **{"vocab_size": 4096, "context": 1024, "window": 16} | changes
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "heldout.txt"
    path.write_text(TEXT)
    return path


@given(length=st.integers(2, 12), stride=st.integers(1, 12), count=st.integers(1, 6))
def test_no_token_is_predicted_twice_and_none_between_is_left_out(
    length: int, stride: int, count: int
) -> None:
    stride = min(stride, length)
    windows = Windows(torch.zeros(count, length, dtype=torch.int64), stride)
    places = [
        window * stride + index
        for window in range(count)
        for index in range(windows.first_predicted(window), length)
    ]
    unpredicted = range(0, count * length, length) if stride == length else range(1)
    everything = range((count - 1) * stride + length)
    assert sorted(places) == [place for place in everything if place not in unpredicted]
    assert windows.predicted == len(places)


def test_text_is_encoded_end_to_end_without_special_tokens(text: Path) -> None:
    ids = Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids
    windows = load(text)
    assert windows.tokens.flatten().tolist() == ids[: len(ids) // 16 * 16]
    assert windows.stride == 16
    assert load(text, stride=4).tokens[1].tolist() == ids[4:20]
    assert load(text, limit=2).tokens.tolist() == windows.tokens[:2].tolist()


def test_records_are_put_end_to_end(text: Path, tmp_path: Path) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT[i : i + 40]}) + "\n" for i in range(0, len(TEXT), 40)))
    assert load(path).tokens.equal(load(text).tokens)


def test_a_limit_does_not_change_the_windows_it_leaves(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes((DEMO / "heldout.txt").read_bytes() * 40)
    everything = load(path, window=512, stride=128)
    few = load(path, window=512, stride=128, limit=40)
    assert few.tokens.equal(everything.tokens[:40])
    assert load(path, window=512, stride=128, limit=10**6).tokens.equal(everything.tokens)


def test_chats_are_rendered(text: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(DEMO / name, model / name)
    (model / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    path = tmp_path / "heldout.jsonl"
    parts = [{"messages": [{"role": "user", "content": part}]} for part in TEXT.splitlines(keepends=True)]
    path.write_text("".join(json.dumps(part) + "\n" for part in parts))
    windows = load_windows(TextFiles.local(path), model, vocab_size=4096, context=1024, window=16)
    assert windows.tokens.equal(load(text).tokens)


def test_the_default_window_is_the_context_up_to_2048(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text(TEXT * 40)
    assert load(path, window=None).tokens.shape[1] == 1024
    assert load(path, window=None, context=8192).tokens.shape[1] == 2048


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": 1025}, "a window of 1025 tokens does not suit the model"),
        ({"window": 1}, "a window of 1 tokens does not suit the model"),
        ({"stride": 17}, "a stride of 17 tokens does not suit a window of 16"),
        ({"stride": 0}, "a stride of 0 tokens"),
        ({"window": 1000}, "too short: [0-9]+ tokens do not fill a window of 1000"),
    ],
)
def test_windows_that_do_not_suit(changes: dict[str, int], said: str, text: Path) -> None:
    with pytest.raises((UsageError, DataError), match=said) as caught:
        load(text, **changes)
    assert caught.value.fix


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"caf\xe9", "is not UTF-8"),
        ("a.txt", b"", "is empty"),
        ("a.jsonl", b"{}\n", "a.jsonl:1: the record has neither text nor messages"),
        ("a.jsonl", b'{"text": "x"}\n\n', "a.jsonl:2: the line is empty"),
        ("a.jsonl", b'{"text": 1}\n', "neither text nor a chat"),
        ("a.jsonl", b"[1]\n", "neither text nor messages"),
        ("a.jsonl", b"[" * 100_000, "is not JSON"),
    ],
)
def test_bad_text_is_told(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        load(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load(tmp_path / "none.txt")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_tokenizer_that_is_not_the_models(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="outside the model's vocabulary, which ends at 99"):
        load(text, vocab_size=100)
    with pytest.raises(ModelError, match=r"tokenizer\.json: the tokenizer cannot be loaded"):
        load_windows(TextFiles.local(text), tmp_path, vocab_size=4096, context=1024, window=16)


def test_truncation_of_the_tokenizer_file_does_not_shorten_the_text(text: Path, tmp_path: Path) -> None:
    shutil.copyfile(DEMO / "tokenizer.json", tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.enable_truncation(20)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    cut = load_windows(TextFiles.local(text), tmp_path, vocab_size=4096, context=1024, window=16)
    assert cut.tokens.equal(load(text).tokens)
