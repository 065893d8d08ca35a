"""`Documents`: a data set as texts by number, chats rendered by the model's own template."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from toolchain.errors import DataError
from toolchain.text.chat import ChatTemplate
from toolchain.text.files import TextFiles
from toolchain.text.records import Record, open_records


class Documents:
    """The documents of all files of a data set, numbered end to end.

    A record without text (none, or nothing but white space) is an empty document, which the reader of
    documents may pass over.

    Attributes:
        where: the file, or the data set's name if there are several; for errors.
        empty: how many empty documents have been read.
        first_empty: where the first of them was written.
    """

    def __init__(self, text: TextFiles, model_dir: Path, *, piece: int) -> None:
        """Find the documents; `piece` as in `open_records`.

        Raises:
            DataError: a file cannot be read or is not in its form, or there is no record in any.
        """
        self._column = text.column
        self._template = ChatTemplate(model_dir)
        self._readers = [open_records(path, column=text.column, piece=piece) for path in text.files]
        self._starts = [0, *accumulate(len(reader) for reader in self._readers)]
        self.where = str(text.files[0]) if len(text.files) == 1 else text.name
        self.empty = 0
        self.first_empty: str | None = None
        if not len(self):
            raise DataError("the data set is empty", where=self.where, fix="put text into it")

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, numbers: Sequence[int]) -> list[str]:
        """The documents of these numbers, from 0, in the order asked for.

        Raises:
            DataError: a record is malformed, or is a chat that cannot be rendered.
            ModelError: the tokenizer that renders chats cannot be loaded.
        """
        places: dict[int, list[int]] = defaultdict(list)  # file -> indices into `numbers`
        for index, number in enumerate(numbers):
            places[bisect_right(self._starts, number) - 1].append(index)
        documents = [""] * len(numbers)
        for file, indices in places.items():
            records = self._readers[file].read([numbers[index] - self._starts[file] for index in indices])
            for index, record in zip(indices, records, strict=True):
                documents[index] = self._document(record)
        return documents

    def _document(self, record: Record) -> str:
        text = _text_of(record, self._column, self._template)
        if not text.strip():
            self.empty += 1
            self.first_empty = self.first_empty or record.where
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                "the record's text is not Unicode",
                where=record.where,
                why=f"character {error.start} is {text[error.start]!a}, half of a surrogate pair",
                fix="write the record again from its source",
            ) from None
        return text


def _text_of(record: Record, column: str | None, template: ChatTemplate) -> str:
    """A record as text. A mapping's text or chat is under `column`, or else under `text` or `messages`."""
    if isinstance(record.value, str):
        return record.value
    fields = record.value if isinstance(record.value, Mapping) else {}
    keys = (column,) if column is not None else ("text", "messages")
    given = [key for key in keys if key in fields]
    if not given:
        raise DataError(
            f"the record has {'neither' if len(keys) > 1 else 'no'} {' nor '.join(keys)}",
            where=record.where,
            why=f"its keys are {', '.join(map(str, fields))}" if fields else "it is not an object with keys",
            fix='write {"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}, or set column, '
            "beside dataset, to the key",
        )
    value: Any = next((fields[key] for key in given if fields[key] is not None), "")
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return template.render(value, record.where)
    raise DataError(
        f"the record's {given[0]} is neither text nor a chat",
        where=record.where,
        why=f"it is of type {type(value).__name__}",
        fix='write "...", or [{"role": "user", "content": "..."}]',
    )
