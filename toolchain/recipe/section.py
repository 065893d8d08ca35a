"""What every section of a recipe has in common: strict types, no unknown keys, immutable."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A mapping of a recipe. Types are exact (`"4"` is not 4), unknown keys are errors, fields are final."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# Texts with a form. `patternErrorMessage` is what yaml-language-server and our own errors say instead of
# the regular expression.
SLUG_FORM = (
    "lower-case letters, digits, '.', '_' and '-', at most 63 characters, beginning with a letter or digit"
)
SOURCE_FORM = "a Hugging Face id (owner/name), or a directory that begins with ./ ../ / or ~/"
DATASET_FORM = "file:PATH or hf:OWNER/NAME"
PERCENT_FORM = "a percentage such as 3% or 0.5%"
PATH_FORM = "a path that begins with ./ ../ / or ~/"
SIZE_FORM = "a size such as 512MiB or 5GiB"

# A Hub id is `name` or `owner/name`; a path begins with `.`, `/` or `~`. No look at the file system decides
# which of the two is meant, so a recipe means the same on every machine.
_HUB_ID = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?"
_LOCAL = r"(\.{1,2}|~)?(/[^\x00-\x1f\x7f]*)?"

Slug = Annotated[
    str,
    Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", json_schema_extra={"patternErrorMessage": SLUG_FORM}),
]
Source = Annotated[
    str,
    Field(
        min_length=1,
        pattern=rf"^({_HUB_ID}|{_LOCAL})$",
        json_schema_extra={"patternErrorMessage": SOURCE_FORM},
    ),
]
LocalPath = Annotated[
    str,
    Field(
        min_length=1,
        pattern=rf"^{_LOCAL}$",
        json_schema_extra={"patternErrorMessage": PATH_FORM},
    ),
]
Dataset = Annotated[
    str,
    Field(
        pattern=rf"^(file:[^\x00-\x1f\x7f]+|hf:{_HUB_ID})$",
        json_schema_extra={"patternErrorMessage": DATASET_FORM},
    ),
]
Percent = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{1,3}(\.[0-9]{1,6})?%$",
        json_schema_extra={"patternErrorMessage": PERCENT_FORM},
    ),
]
Size = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{1,9}(\.[0-9]{1,3})?[KMGT]i?B$",
        json_schema_extra={"patternErrorMessage": SIZE_FORM},
    ),
]


def size_bytes(size: str) -> int:
    """A `Size` in bytes: KiB is 1024 of them, KB 1000."""
    number, unit = size.rstrip("KMGTiB"), size.lstrip("0123456789.")
    return int(float(number) * (1024 if "i" in unit else 1000) ** ("KMGT".index(unit[0]) + 1))
