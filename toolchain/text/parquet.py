"""Rows of a Parquet file by their number: one column, a row group's batches at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from toolchain.errors import DataError
from toolchain.text.records import Record, unreadable

_BATCH = 1024  # rows in memory at once


class ParquetRows:
    """The rows of one column, each as a record with that column alone.

    Numbers that are asked for together are read together: each row group that holds one is gone through
    once.
    """

    def __init__(self, path: Path, column: str | None) -> None:
        self._path = path
        try:
            self._file = pq.ParquetFile(path)
        except pa.ArrowException as error:
            raise self._damaged(error) from None
        schema = self._file.schema_arrow
        wanted = [column] if column is not None else ["text", "messages"]
        self._column = next((name for name in wanted if name in schema.names), "")
        if not self._column:
            raise DataError(
                f"the file has no column {' or '.join(wanted)}",
                where=str(path),
                why=f"its columns are {', '.join(schema.names) or 'none at all'}",
                fix="set column, beside dataset, to the one with the text or the chat",
            )
        kind = schema.field(self._column).type
        if not _is_text(kind) and not _is_chat(kind):
            raise DataError(
                f"the column {self._column} holds neither text nor chats",
                where=str(path),
                why=f"its type is {kind}",
                fix="set column, beside dataset, to one of strings, or of lists of {role, content}",
            )
        metadata = self._file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts: list[int] = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """The rows of these numbers, from 0, in the order asked for."""
        by_group: dict[int, list[int]] = defaultdict(list)
        for number in sorted(set(numbers)):
            by_group[bisect_right(self._starts, number) - 1].append(number)
        found: dict[int, Any] = {}
        try:
            for group, wanted in by_group.items():
                self._read_group(group, wanted, found)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise self._damaged(error) from None
        except OSError as error:
            if error.errno is None:  # raised by Arrow for pages that it cannot make sense of
                raise self._damaged(error) from None
            raise unreadable(self._path, error) from None
        return [
            Record({self._column: found[number]}, f"{self._path}: row {number + 1}") for number in numbers
        ]

    def _read_group(self, group: int, wanted: list[int], found: dict[int, Any]) -> None:
        at = self._starts[group]
        left = iter(wanted)
        number = next(left, None)
        batches = self._file.iter_batches(_BATCH, row_groups=[group], columns=[self._column])
        for batch in batches:
            column = batch.column(self._column)
            while number is not None and number < at + len(batch):
                found[number] = column[number - at].as_py()
                number = next(left, None)
            at += len(batch)
            if number is None:
                return

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            "the file is not Parquet, or is damaged",
            where=str(self._path),
            why=str(error).partition("\n")[0],
            fix="fetch or write it again",
        )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_chat(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_struct(kind.value_type))
