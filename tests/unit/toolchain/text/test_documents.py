"""Data sets as documents."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolchain.errors import DataError
from toolchain.text.documents import Documents
from toolchain.text.files import TextFiles

Write = Callable[[str, Any], Path]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


@pytest.fixture
def documents(model_dir: Path) -> Callable[..., Documents]:
    def documents(*files: Path, column: str | None = None) -> Documents:
        return Documents(TextFiles("a set", files, column), model_dir, piece=20)

    return documents


def everything(documents: Documents) -> list[str]:
    return documents.read(range(len(documents)))


def test_files_of_several_forms_are_numbered_end_to_end(
    write: Write, documents: Callable[..., Documents]
) -> None:
    files = [
        write("a.jsonl", [{"text": "one"}, {"messages": CHAT}]),
        write("b.parquet", [{"text": "three"}, {"text": "four"}]),
        write("empty.jsonl", []),
        write("c.txt", b"five is a line of text\nand six another\n"),
        write("d.json", [{"text": "seven"}]),
    ]
    found = documents(*files)
    rendered = "[user]hi\n[assistant]yes\n"
    texts = ["one", rendered, "three", "four", "five is a line of text\n", "and six another\n", "seven"]
    assert everything(found) == texts
    assert found.read([6, 4, 2, 0, 2]) == [texts[number] for number in (6, 4, 2, 0, 2)]
    assert found.where == "a set"
    assert documents(files[0]).where == str(files[0])


def test_a_chat_is_the_same_in_every_form(write: Write, documents: Callable[..., Documents]) -> None:
    # In a table, each message has each key: `name` is null where JSON leaves it out.
    chat = [{"role": "user", "name": "Ann", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    expected = ["[user Ann]hi\n[assistant]yes\n"]
    for name in ("a.jsonl", "a.json", "a.parquet"):
        assert everything(documents(write(name, [{"messages": chat}]))) == expected
        named = documents(write(f"b-{name}", [{"text": "no", "talk": chat}]), column="talk")
        assert everything(named) == expected


def test_text_goes_before_messages_where_it_is_there(
    write: Write, documents: Callable[..., Documents]
) -> None:
    path = write("a.jsonl", [{"text": "t", "messages": CHAT}, {"text": None, "messages": CHAT[:1]}])
    assert everything(documents(path)) == ["t", "[user]hi\n"]


def test_empty_documents_are_counted(write: Write, documents: Callable[..., Documents]) -> None:
    path = write("a.parquet", [{"text": "x"}, {"text": None}, {"text": ""}, {"text": " \n"}])
    found = documents(path)
    assert everything(found) == ["x", "", "", " \n"]
    assert (found.empty, found.first_empty) == (3, f"{path}: row 2")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"body": "x"}, r"a\.jsonl:1: the record has neither text nor messages\n  why: its keys are body"),
        ([1], "neither text nor messages\n  why: it is not an object"),
        ({"text": 1}, "a.jsonl:1: the record's text is neither text nor a chat\n  why: it is of type int"),
        ({"messages": {"role": "user"}}, "the record's messages is neither"),
        ({"messages": []}, "a.jsonl:1: the record's messages are malformed"),
        ({"messages": ["hi"]}, "messages are malformed"),
        ({"messages": [{"content": "x"}]}, "messages are malformed"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages are malformed"),
        ({"messages": [{"role": "user"}]}, "messages are malformed"),
        ({"text": "x\ud800"}, r"(?s)a\.jsonl:1: .*not Unicode.*character 1 is '\\ud800'"),
        ({"messages": [{"role": "user", "content": "\udc00"}]}, "not Unicode"),
    ],
)
def test_malformed_records(record: Any, said: str, write: Write, documents: Callable[..., Documents]) -> None:
    with pytest.raises(DataError, match=said):
        everything(documents(write("a.jsonl", [record])))


def test_a_column_that_is_not_there(write: Write, documents: Callable[..., Documents]) -> None:
    path = write("a.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match="the record has no body\n  why: its keys are text"):
        everything(documents(path, column="body"))


def test_chats_and_their_template(write: Write, documents: Callable[..., Documents], model_dir: Path) -> None:
    path = write("a.jsonl", [{"text": "x"}, {"messages": CHAT}])
    (model_dir / "chat_template.jinja").write_text("{{ raise_exception('no such role') }}")
    with pytest.raises(
        DataError, match=r"jsonl:2: the chat template refuses the record\n  why: no such role"
    ):
        everything(documents(path))
    (model_dir / "chat_template.jinja").unlink()
    config = json.loads((model_dir / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (model_dir / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match=r"a\.jsonl:2: the record is a chat, but .* no chat template"):
        everything(documents(path))


def test_no_record_at_all(write: Write, documents: Callable[..., Documents]) -> None:
    with pytest.raises(DataError, match="a set: the data set is empty"):
        documents(write("a.txt", b""), write("a.jsonl", []))
