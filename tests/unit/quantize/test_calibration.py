import json
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantize.calibration import Calibration, load_calibration
from toolchain.errors import DataError, ModelError, QuantizeError
from toolchain.progress import Silent
from toolchain.text.files import TextFiles

TEXT = "".join(f"line {number} of the text\n" for number in range(60))


@pytest.fixture
def model_dir(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def load(tmp_path: Path, model_dir: Path) -> Callable[..., Calibration]:
    """Write content to a file and load it."""

    def load(content: str | bytes, name: str = "c.txt", **changes: Any) -> Calibration:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        settings: dict[str, Any] = {"vocab_size": 96, "samples": 4, "seq_len": 16, "seed": 0}
        return load_calibration(TextFiles.local(path), model_dir, **(settings | changes))

    return load


def records(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def decoded(calibration: Calibration) -> str:
    return "".join("\n" if t == 95 else chr(31 + t) for t in calibration.tokens.flatten().tolist())


def test_text_is_packed_without_loss(load: Callable[..., Calibration]) -> None:
    calibration = load("0123456789" * 7)
    assert calibration.tokens.shape == (4, 16)
    assert calibration.tokens.dtype == torch.int64
    assert decoded(calibration) == ("0123456789" * 7)[:64]


def test_a_seed_draws_one_selection(load: Callable[..., Calibration]) -> None:
    first, again, other = load(TEXT), load(TEXT), load(TEXT, seed=1)
    assert first.digest == again.digest
    assert torch.equal(first.tokens, again.tokens)
    assert first.digest != other.digest


def test_records_of_text_and_of_chats(load: Callable[..., Calibration]) -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    content = records({"messages": chat}, {"messages": chat})
    calibration = load(content, "c.jsonl", samples=1, seq_len=21)
    assert decoded(calibration) == "[user]hi\n[assistant]yes\n"[:21]
    assert decoded(load(records({"text": "abc" * 30}), "c.jsonl", samples=1)) == ("abc" * 30)[:16]


def test_every_sequence_begins_as_the_tokenizer_begins_a_text(
    tmp_path: Path, tiny_tokenizer: Any, load: Callable[..., Calibration], model_dir: Path
) -> None:
    from tokenizers.processors import TemplateProcessing

    tiny_tokenizer = type(tiny_tokenizer).from_pretrained(model_dir)
    tiny_tokenizer.bos_token = "<s>"
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    tiny_tokenizer.save_pretrained(model_dir)
    tokens = load("0123456789" * 7).tokens
    assert tokens[:, 0].tolist() == [0, 0, 0, 0]
    assert bool((tokens[:, 1:] > 0).all())
    assert decoded(Calibration("", tokens[:2, 1:], 0)) == ("0123456789" * 7)[:30]


@pytest.mark.parametrize(
    ("content", "name", "match"),
    [
        ("short", "c.txt", "too short: 5 tokens, but 4 samples of 16 need 64"),
        ("", "c.txt", "is empty"),
        ("\n \n", "c.txt", "(?s)0 tokens.*1 of 1 documents are empty, as at .*c.txt:1"),
        (b"caf\xe9 au lait", "c.txt", "not UTF-8\n  why: byte 3 is 0xe9"),
        ("", "c.jsonl", "c.jsonl: the data set is empty"),
        ("\n", "c.jsonl", "c.jsonl:1: the line is empty"),
        ('{"text": "a"}\n\n{"text": "b"}\n', "c.jsonl", "c.jsonl:2: the line is empty"),
        ('{"text": "a"}\n{"text": \n', "c.jsonl", "c.jsonl:2: the line is not JSON"),
        (
            '{"text": "  "}\n',
            "c.jsonl",
            "(?s)0 tokens.*1 of 1 documents are empty, as at .*c.jsonl:1",
        ),
        ('{"txt": "a"}\n', "c.jsonl", "neither text nor messages\n  why: its keys are txt"),
        ("[1]\n", "c.jsonl", "neither text nor messages"),
        ('{"messages": []}\n', "c.jsonl", "messages are malformed"),
        ('{"messages": [{"content": "x"}]}\n', "c.jsonl", "messages are malformed"),
    ],
)
def test_bad_data_is_named(
    content: str | bytes, name: str, match: str, load: Callable[..., Calibration]
) -> None:
    with pytest.raises(DataError, match=match):
        load(content, name)


def test_tokens_outside_the_vocabulary(load: Callable[..., Calibration]) -> None:
    with pytest.raises(ModelError, match=r"token 95 \('\\n'\) lies outside .* which ends at 89"):
        load(TEXT, vocab_size=90)


def test_a_chat_needs_a_template(
    load: Callable[..., Calibration], model_dir: Path, tiny_tokenizer: Any
) -> None:
    (model_dir / "chat_template.jinja").unlink()
    with pytest.raises(DataError, match="has no chat template"):
        load(records({"messages": [{"role": "user", "content": "x"}]}), "c.jsonl")
    (model_dir / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match="the chat template refuses the record\n  why: no system role"):
        load(records({"messages": [{"role": "user", "content": "x"}]}), "c.jsonl")


def test_what_is_asked_for_must_make_sense(
    load: Callable[..., Calibration], model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuantizeError, match="0 samples of 16 tokens"):
        load(TEXT, samples=0)
    with pytest.raises(DataError, match="ask for at most 74 samples"):
        load(TEXT, samples=86)
    asked: dict[str, Any] = {"vocab_size": 96, "samples": 1, "seq_len": 16, "seed": 0}
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_calibration(TextFiles.local(tmp_path / "absent.txt"), model_dir, **asked)
    (tmp_path / "c.txt").write_text(TEXT)
    with pytest.raises(ModelError, match="tokenizer cannot be loaded"):
        load_calibration(TextFiles.local(tmp_path / "c.txt"), tmp_path / "nothing", **asked)


def test_empty_documents_are_passed_over_and_told(
    tmp_path: Path, model_dir: Path, load: Callable[..., Calibration]
) -> None:
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    full = [{"text": f"{number} and more of it"} for number in range(8)]
    empty: list[Any] = [{"text": ""}, {"text": None}, {"text": " \n"}]
    asked: dict[str, Any] = {"samples": 8, "seq_len": 16}
    calibration = load(records(*empty, *full), "c.jsonl", **asked, progress=Notes())
    assert calibration.documents == 8
    assert len(notes) == 1
    assert re.search(r"passed over: 3, the first at .*c\.jsonl:[123]$", notes[0])
    assert sorted(decoded(calibration)) == sorted("".join(record["text"] for record in full))


def test_the_order_is_that_of_a_shuffle_whatever_is_read_together(load: Callable[..., Calibration]) -> None:
    texts = [f"<{number}>" for number in range(300)]
    order = list(range(300))
    random.Random(7).shuffle(order)
    calibration = load(records(*({"text": text} for text in texts)), "c.jsonl", samples=50, seed=7)
    assert decoded(calibration) == "".join(texts[number] for number in order)[:800]


def test_records_that_are_not_drawn_are_not_held(tmp_path: Path, model_dir: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(20_000):
            file.write(json.dumps({"text": f"{number} " * 300}) + "\n")
    size = path.stat().st_size
    tracemalloc.start()
    load_calibration(TextFiles.local(path), model_dir, vocab_size=96, samples=8, seq_len=64, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size > 30e6
    assert peak < size / 20


def test_demo_calibration_is_what_it_was() -> None:
    demo = Path(__file__).parents[3] / "models" / "demo"
    text = TextFiles.local(demo / "calibration.jsonl")
    calibration = load_calibration(text, demo, vocab_size=4096, samples=128, seq_len=256, seed=0)
    assert calibration.digest == "c2d00c69329f5e80e43b91bef5b52f578a24f5881833b386ce74c613a34c57dc"
