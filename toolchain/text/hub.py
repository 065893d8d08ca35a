"""Data sets of the Hugging Face Hub, in the Hub's own cache."""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from toolchain.errors import DataError, LlmbuildError, ToolchainError
from toolchain.text.files import FORMS, form_of
from toolchain.text.splits import Subset, find_subsets

ENOUGH = 1 << 30
"""Bytes: the files of a split are taken in the order of their names until they hold this much."""

_CARD = "README.md"


def fetch_split(
    repo: str, *, revision: str = "main", subset: str | None = None, split: str | None = None
) -> tuple[str, tuple[Path, ...]]:
    """The commit that `revision` stands for, and the files of the split at that commit.

    They are downloaded unless they are in the Hub's cache. Without network, the revision is what it was
    when the cache last heard, and the split is what the cache holds of it.

    Raises:
        DataError, ToolchainError: as in `find_text`.
    """
    snapshot = _snapshot(repo, revision, [_CARD])
    sizes, reason = _remote_sizes(repo, snapshot.name)
    online = sizes is not None
    if sizes is None:
        sizes = _local_sizes(snapshot)
    card = snapshot / _CARD
    subsets = find_subsets(sizes, card.read_text("utf-8", errors="replace") if card.is_file() else "")

    def absent(error: DataError) -> LlmbuildError:
        return error if online else _unreachable(repo, revision, f"in the cache, {error.what}; {reason}")

    names = _enough(_chosen(f"hf:{repo}", subsets, subset, split, absent), sizes)
    if online:
        _snapshot(repo, snapshot.name, [glob.escape(name) for name in names])
    return snapshot.name, tuple(snapshot / name for name in names)


def _chosen(
    where: str,
    subsets: Sequence[Subset],
    subset: str | None,
    split: str | None,
    absent: Callable[[DataError], LlmbuildError],
) -> list[str]:
    """The files of one split, all of one form.

    Args:
        where: the data set, to name in errors.
        subsets: of the data set.
        subset: the one asked for.
        split: the one asked for.
        absent: what to raise for something that is not there.
    """
    given = [found for found in subsets if any(found.splits.values())]
    if not given:
        error = DataError(
            "the data set has no file that can be read",
            where=where,
            why=f"what can be read ends in {', '.join('.' + form for form in FORMS)}, also with .gz or .zst",
            fix="set revision, beside dataset, to refs/convert/parquet, the Hub's own conversion",
        )
        raise absent(error)
    name = subset if subset is not None else _obvious([s.name for s in given], [s.default for s in given])
    found = next((found for found in given if found.name == name), None)
    if found is None:
        raise _which(where, "subset", subset, [found.name for found in given], absent)
    splits = {name: files for name, files in found.splits.items() if files}
    chosen = split if split is not None else _obvious(list(splits), [])
    if chosen not in splits:
        raise _which(where, "split", split, list(splits), absent)
    files = splits[chosen]
    form = min((form_of(PurePosixPath(file)) for file in files), key=FORMS.index)
    return [file for file in files if form_of(PurePosixPath(file)) == form]


def _obvious(names: Sequence[str], defaults: Sequence[bool]) -> str | None:
    """The one that is meant where none is named."""
    if len(names) == 1:
        return names[0]
    marked = [name for name, default in zip(names, defaults, strict=False) if default]
    return marked[0] if marked else "default" if "default" in names else None


def _which(
    where: str,
    kind: str,
    asked: str | None,
    names: Sequence[str],
    absent: Callable[[DataError], LlmbuildError],
) -> LlmbuildError:
    there = ", ".join(names)
    fix = f"set {kind}, beside dataset, to one of {there}"
    if asked is None:
        return DataError(f"the data set has several {kind}s: {there}", where=where, fix=fix)
    return absent(DataError(f"the data set has no {kind} {asked}, only {there}", where=where, fix=fix))


def _enough(names: Sequence[str], sizes: Mapping[str, int]) -> list[str]:
    taken: list[str] = []
    held = 0
    for name in names:
        if held >= ENOUGH:
            break
        taken.append(name)
        held += sizes[name]
    return taken


def _remote_sizes(repo: str, commit: str) -> tuple[dict[str, int] | None, str]:
    """Bytes of every file on the Hub; or None, and why it could not be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    try:
        tree = HfApi().list_repo_tree(repo, repo_type="dataset", revision=commit, recursive=True)
        return {entry.path: entry.size for entry in tree if isinstance(entry, RepoFile)}, ""
    except Exception as error:  # of the HTTP library, which is not the same in all versions
        return None, str(error).partition("\n")[0]


def _local_sizes(snapshot: Path) -> dict[str, int]:
    """Bytes of every file in a snapshot of the cache."""
    return {
        path.relative_to(snapshot).as_posix(): path.stat().st_size
        for path in snapshot.rglob("*")
        if path.is_file()
    }


def _snapshot(repo: str, revision: str, patterns: list[str]) -> Path:
    """The directory of a commit in the Hub's cache, named after it, with the files that match."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"hf:{repo}"
    try:
        return Path(snapshot_download(repo, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise ToolchainError(
            "the data set is gated",
            where=where,
            fix="accept its terms on the Hub, then run `hf auth login` here",
        ) from None
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise DataError(
            "there is no such data set on the Hub",
            where=where,
            why=str(error).partition("\n")[0],
            fix="check dataset; a local file is file:PATH",
        ) from None
    except RevisionNotFoundError:
        raise DataError(
            f"the data set has no revision {revision}",
            where=where,
            fix="set revision, beside dataset, to a branch, tag or commit of it",
        ) from None
    except OSError as error:  # LocalEntryNotFoundError and OfflineModeIsEnabled are among these
        left = _left_by_others(repo, revision) if patterns == [_CARD] else None
        if left is None:
            raise _unreachable(repo, revision, str(error).partition("\n")[0]) from None
        return left


def _left_by_others(repo: str, revision: str) -> Path | None:
    """A snapshot in the cache that lacks the card, if there is one."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                repo, repo_type="dataset", revision=revision, allow_patterns=[], local_files_only=True
            )
        )
    except OSError:
        return None


def _unreachable(repo: str, revision: str, reason: str) -> ToolchainError:
    at = "" if revision == "main" else f" --revision {revision}"
    return ToolchainError(
        f"the data set {repo} is not here, and the Hub cannot be reached",
        why=reason,
        fix=f"download it where there is a network (`hf download --repo-type dataset {repo}{at}`) and copy "
        "the Hub's cache, or name a local file as file:PATH",
    )
