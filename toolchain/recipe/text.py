"""What names a data set of text, in every section that reads one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from toolchain.recipe.section import Dataset, Section


class Text(Section):
    """A data set of text: local, or of the Hugging Face Hub."""

    dataset: Dataset = Field(
        description="The text: file:PATH, relative to the recipe file (plain text, .jsonl, .json or "
        ".parquet), or hf:OWNER/NAME, a data set of the Hugging Face Hub."
    )
    subset: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None,
        description="Of a Hub data set: what its card calls a config. null: the only one, or the default.",
    )
    split: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="Of a Hub data set: train, test, and the like. null: the only one."
    )
    revision: Annotated[str, Field(min_length=1, max_length=255)] = Field(
        default="main",
        description="Of a Hub data set: branch, tag or commit. `build` resolves it to a commit and records "
        "that.",
    )
    column: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None,
        description="Key (.jsonl, .json) or column (.parquet) with the text, or with the chat: a list of "
        "{role, content}, which the model's chat template renders. null: text, or else messages.",
    )

    @property
    def file(self) -> Path | None:
        """The local file, or None for a data set of the Hub."""
        return Path(self.dataset.removeprefix("file:")) if self.dataset.startswith("file:") else None

    def same_source(self, other: Text) -> bool:
        """Whether both are read from the same split, of whatever revision."""
        names = ("dataset", "subset", "split")
        return all(getattr(self, name) == getattr(other, name) for name in names)
