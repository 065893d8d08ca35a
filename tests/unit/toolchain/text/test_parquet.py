"""Rows of Parquet files."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toolchain.errors import DataError
from toolchain.text.parquet import ParquetRows
from toolchain.text.records import Record

Write = Callable[[str, Any], Path]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]


def test_rows_of_all_row_groups_in_any_order(write: Write) -> None:
    path = write("a.parquet", [{"id": number, "text": f"text {number}"} for number in range(10)])
    assert pq.ParquetFile(path).metadata.num_row_groups == 4
    rows = ParquetRows(path, None)
    assert len(rows) == 10
    assert rows.read([9, 0, 3, 3]) == [
        Record({"text": f"text {number}"}, f"{path}: row {number + 1}") for number in (9, 0, 3, 3)
    ]


def test_columns(write: Write) -> None:
    path = write("a.parquet", [{"text": "t", "messages": CHAT, "article": "a"}])
    for column, value in ((None, "t"), ("messages", CHAT), ("article", "a")):
        assert list(ParquetRows(path, column).read([0])[0].value.values()) == [value]
    path = write("b.parquet", [{"id": 1, "messages": CHAT}])
    assert ParquetRows(path, None).read([0])[0].value == {"messages": CHAT}


@pytest.mark.parametrize(
    "kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
)
def test_strings_of_every_kind(kind: pa.DataType, tmp_path: Path) -> None:
    column = pa.array(["one", None, "one"]).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    rows = ParquetRows(tmp_path / "a.parquet", None).read([0, 1])
    assert [row.value["text"] for row in rows] == ["one", None]


def test_columns_that_hold_no_text(write: Write) -> None:
    path = write("a.parquet", [{"id": 1, "tags": ["a"], "article": "x"}])
    with pytest.raises(
        DataError, match="no column text or messages\n  why: its columns are id, tags, article"
    ):
        ParquetRows(path, None)
    with pytest.raises(DataError, match="no column body"):
        ParquetRows(path, "body")
    for column, kind in (("id", "int64"), ("tags", "list<")):
        with pytest.raises(
            DataError, match=f"{column} holds neither text nor chats\n  why: its type is {kind}"
        ):
            ParquetRows(path, column)


def test_damage_behind_a_whole_footer(write: Write) -> None:
    path = write("a.parquet", [{"text": f"text {number} " * 50} for number in range(50)])
    data = bytearray(path.read_bytes())
    data[4:400] = b"\xff" * 396
    path.write_bytes(data)
    rows = ParquetRows(path, None)
    with pytest.raises(DataError, match="is not Parquet, or is damaged"):
        rows.read(range(50))


def test_strings_that_are_not_utf_8(tmp_path: Path) -> None:
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\x04\0\0\0"), pa.py_buffer(b"caf\xe9")]
    )
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"(?s)damaged.*utf-8"):
        ParquetRows(tmp_path / "a.parquet", None).read([0])


def test_a_few_rows_do_not_read_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("text", pa.string()), ("other", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for group in range(20):
            rows = [{"text": f"{group} {row} " * 300, "other": "x" * 1000} for row in range(1000)]
            writer.write_table(pa.Table.from_pylist(rows, schema))
    pool = pa.default_memory_pool()
    before = pool.max_memory()
    tracemalloc.start()
    rows = ParquetRows(path, None)
    texts = [row.value["text"] for row in rows.read([19_999, 0, 10_500])]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [text[:7] for text in texts] == ["19 999 ", "0 0 0 0", "10 500 "]
    assert path.stat().st_size > 50e6
    assert peak < 3e6
    assert pool.max_memory() - before < 10e6
