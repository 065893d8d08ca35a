"""`TextFiles`: the files that a data set's name stands for, and the forms that they can have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from toolchain.errors import DataError

FORMS = ("parquet", "jsonl", "json", "txt")
"""Forms that are told by a suffix; anything else is read as plain text."""

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


@dataclass(frozen=True)
class TextFiles:
    """A data set that is here.

    Attributes:
        name: as the recipe names it.
        files: in the order in which they are read.
        column: the key or column with the text or the chat; None for `text`, or else `messages`.
        commit: of a data set of the Hub.
    """

    name: str
    files: tuple[Path, ...]
    column: str | None = None
    commit: str | None = None

    @classmethod
    def local(cls, path: Path, column: str | None = None) -> TextFiles:
        """One file. Whether it can be read shows when it is."""
        return cls(f"file:{path}", (path,), column)


def form_of(path: PurePath) -> str:
    """One of FORMS, by the suffix under that of a compression."""
    suffixes = path.suffixes[:-1] if path.suffix in COMPRESSIONS else path.suffixes
    form = suffixes[-1].removeprefix(".") if suffixes else "txt"
    return form if form in FORMS else "txt"


def find_text(
    dataset: str,
    *,
    revision: str = "main",
    subset: str | None = None,
    split: str | None = None,
    column: str | None = None,
) -> TextFiles:
    """The files of `file:PATH` or `hf:OWNER/NAME`; the Hub's are downloaded unless they are here.

    Args:
        dataset: the data set's name.
        revision: branch, tag or commit (Hub only, like the next two).
        subset: what the Hub's cards call a config; None if there is one, or one is the default.
        split: None if there is only one.
        column: as in `TextFiles`.

    Raises:
        DataError: the name is not understood, or the data set has no such revision, subset or split, or
            nothing that can be read.
        ToolchainError: a data set of the Hub is not here, and the Hub cannot be reached.
    """
    scheme, _, rest = dataset.partition(":")
    if scheme == "file" and rest:
        return TextFiles.local(Path(rest), column)
    if scheme == "hf" and rest:
        from toolchain.text.hub import fetch_split

        commit, files = fetch_split(rest, revision=revision, subset=subset, split=split)
        return TextFiles(dataset, files, column, commit)
    raise DataError(
        f"the dataset {dataset!r} is not understood",
        fix="name a local file, file:PATH, or a data set of the Hugging Face Hub, hf:OWNER/NAME",
    )
