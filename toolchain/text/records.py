"""Records of a file by their number, without holding the file: lines of JSON, pieces of text, rows.

What is kept of a file is where its records begin: 8 bytes each, 16 for pieces of text.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from toolchain.errors import DataError
from toolchain.text.files import COMPRESSIONS, form_of

_LINE = 1 << 20  # bytes; a longer line of plain text is cut
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Record:
    """One record: the text of a piece, or a JSON value; and where it was written."""

    value: Any
    where: str


class Reader(Protocol):
    """The records of one file."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, numbers: Sequence[int]) -> list[Record]:
        """The records of these numbers, from 0, in the order asked for.

        Raises:
            DataError: one is malformed, or the file cannot be read.
        """


def open_records(path: Path, *, column: str | None, piece: int) -> Reader:
    """Read through `path` once (Parquet: its footer) to find its records. Its suffix tells its form.

    Args:
        path: .parquet, .jsonl, .json (a list, held whole, or lines as in .jsonl), or UTF-8 text; the last
            three also with .gz or .zst behind, unpacked to a temporary file.
        column: the column of a Parquet file to read.
        piece: characters in a record of plain text, at least, but for the last; it ends at a line's end.

    Raises:
        DataError: the file cannot be read, or is not in its form.
    """
    form = form_of(path)
    try:
        if form == "parquet":
            from toolchain.text.parquet import ParquetRows

            return ParquetRows(path, column)
        file = _open(path)
        if form == "jsonl" or (form == "json" and not _is_list(file)):
            return _Lines(path, file)
        return _Items(path, file) if form == "json" else _Pieces(path, file, piece)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """What to say when the system does not give a file's bytes."""
    return DataError(
        f"the data cannot be read: {os.strerror(error.errno) if error.errno else error}",
        where=str(path),
        fix="check the path and its permissions",
    )


def _open(path: Path) -> BinaryIO:
    """The plain bytes of a file, seekable; unpacked ones are in a file that is gone when it is closed."""
    if path.suffix not in COMPRESSIONS:
        return path.open("rb")
    import pyarrow

    unpacked = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115 (open as long as its reader is)
    with path.open("rb") as packed:
        try:
            with pyarrow.CompressedInputStream(packed, COMPRESSIONS[path.suffix]) as plain:
                shutil.copyfileobj(plain, unpacked, _LINE)
        except OSError as error:
            if error.errno is not None:  # of the disk; what pyarrow says of the bytes has no number
                raise
            raise DataError(
                "the file cannot be unpacked", where=str(path), why=str(error), fix="copy or pack it again"
            ) from error
    unpacked.seek(0)
    return unpacked


def _is_list(file: BinaryIO) -> bool:
    """Whether the first character that is not white is a bracket; goes back to the beginning."""
    head = file.read(4096).removeprefix(_BOM).lstrip()
    file.seek(0)
    return head.startswith(b"[")


class _Lines:
    """Lines of JSON."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._starts = array("Q")
        at = 0
        for line in file:
            if line.isspace():
                where = f"{path}:{len(self._starts) + 1}"
                raise DataError("the line is empty", where=where, fix="remove it, or write a record")
            self._starts.append(at)
            at += len(line)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, numbers: Sequence[int]) -> list[Record]:
        return [self._read(number) for number in numbers]

    def _read(self, number: int) -> Record:
        where = f"{self._path}:{number + 1}"
        self._file.seek(self._starts[number])
        line = self._file.readline()
        if number == 0:
            line = line.removeprefix(_BOM)
        text = _decoded(line, where, self._starts[number], self._path)
        try:
            return Record(json.loads(text), where)
        except (ValueError, RecursionError) as error:
            raise DataError(
                "the line is not JSON", where=where, why=str(error), fix='write {"text": "..."}'
            ) from None


class _Items:
    """Items of a JSON list, all in memory."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        text = _decoded(file.read().removeprefix(_BOM), str(path), 0, path)
        try:
            self._items: list[Any] = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(
                "the file is not JSON", where=str(path), why=str(error), fix="write a list of records"
            ) from None

    def __len__(self) -> int:
        return len(self._items)

    def read(self, numbers: Sequence[int]) -> list[Record]:
        return [Record(self._items[number], f"{self._path}: record {number + 1}") for number in numbers]


class _Pieces:
    """Pieces of plain text that end where lines end."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self._path, self._file = path, file
        self._starts, self._first_lines = array("Q"), array("Q")
        at = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(at)
        length = size  # characters of the present piece: the first line begins one
        number = 1
        for line in _lines_of_text(file):
            if length >= size:
                self._starts.append(at)
                self._first_lines.append(number)
                length = 0
            length += len(_decoded(line, f"{path}:{number}", at, path))
            at += len(line)
            number += line.endswith(b"\n")
        self._starts.append(at)

    def __len__(self) -> int:
        return len(self._starts) - 1

    def read(self, numbers: Sequence[int]) -> list[Record]:
        return [self._read(number) for number in numbers]

    def _read(self, number: int) -> Record:
        start, end = self._starts[number : number + 2]
        where = f"{self._path}:{self._first_lines[number]}"
        self._file.seek(start)
        return Record(_decoded(self._file.read(end - start), where, start, self._path), where)


def _lines_of_text(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends; one of more than _LINE bytes in parts, cut between characters."""
    rest = b""
    while line := rest + file.readline(_LINE):
        rest = b""
        if len(line) >= _LINE and not line.endswith(b"\n"):
            # A character of UTF-8 has at most three bytes behind its first, each 10xxxxxx.
            cut = next((i for i in range(1, 5) if line[-i] & 0b1100_0000 != 0b1000_0000), 1)
            line, rest = line[:-cut], line[-cut:]
        yield line


def _decoded(data: bytes, where: str, at: int, path: Path) -> str:
    """UTF-8 bytes, which begin at byte `at` of the file, as text."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            "the data is not UTF-8",
            where=where,
            why=f"byte {at + error.start} is 0x{data[error.start]:02x}",
            fix=f"convert it: iconv -f latin1 -t utf-8 {path.name}",
        ) from None
