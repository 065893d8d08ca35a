"""Digests of files outside the store. Each file is hashed once, until its size or a time stamp changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from pathlib import Path

from toolchain.errors import UsageError
from toolchain.pipeline.files import FileEntry, Listing, announce_hashing, sha256_file
from toolchain.pipeline.stage import Source
from toolchain.pipeline.store import Store
from toolchain.progress import Progress

_Known = dict[str, list[int | str]]  # path -> [device, inode, size, mtime, ctime, sha256]

# A file written within the clock's granularity of its last change could change again unseen.
_SETTLED_NS = 2_000_000_000


def source_digest(source: Source, store: Store, progress: Progress) -> str:
    """The content digest of a source. File names count for a directory, not for a single file.

    Raises:
        UsageError: it does not exist, cannot be read, or has no file that matches.
    """
    files = _files(source)
    cache = store.sources / f"{hashlib.sha256(os.fsencode(source.path.absolute())).hexdigest()}.json"
    known = _load(cache)
    fresh: _Known = {}
    listed = {}
    try:
        stale = {name: path for name, path in files.items() if known.get(name, [])[:-1] != _stamp(path)}
        shown = announce_hashing(progress, source.path.name, sum(p.stat().st_size for p in stale.values()))
        for name, path in files.items():
            stamp = _stamp(path)
            settled = time.time_ns() - max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) > _SETTLED_NS
            sha256 = sha256_file(path, shown) if name in stale else str(known[name][-1])
            if settled:
                fresh[name] = [*stamp, sha256]
            listed[name] = FileEntry(sha256, path.stat().st_size)
    except OSError as error:
        raise UsageError(
            f"cannot read a source file: {error.strerror}", where=str(error.filename or source.path)
        ) from error
    if fresh != known:
        _save(fresh, cache, store)
    if source.path.is_file():
        return next(iter(listed.values())).sha256
    return Listing(listed).digest


def _files(source: Source) -> dict[str, Path]:
    """The files of a source by name, in order."""
    if source.path.is_file():
        return {source.path.name: source.path}
    if not source.path.is_dir():
        raise UsageError("there is no such file or directory", where=str(source.path))
    found = {}
    for pattern in source.patterns:
        for path in source.path.glob(pattern):
            name = path.relative_to(source.path)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                found[name.as_posix()] = path
    if not found:
        raise UsageError(
            f"the directory has no file that matches {', '.join(source.patterns)}", where=str(source.path)
        )
    return dict(sorted(found.items()))


def _stamp(path: Path) -> list[int | str]:
    """What changes when a file does."""
    status = path.stat()
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _load(cache: Path) -> _Known:
    try:
        known: _Known = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        return {}
    return known


def _save(known: _Known, cache: Path, store: Store) -> None:
    temporary = store.tmp / f"trash.{secrets.token_hex(8)}"
    # Only a convenience: a full or read-only store costs the next build some hashing.
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(known))
        temporary.rename(cache)
