"""Freeing space: what crashed processes left, and outputs that no artifact refers to."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from toolchain.pipeline import locks
from toolchain.pipeline.files import remove_tree, storing
from toolchain.pipeline.store import Store

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Usage:
    """Bytes that a store takes, hard links counted once."""

    objects: int
    work: int
    tmp: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.objects + self.work + self.tmp


@dataclass(frozen=True)
class Collected:
    """What `gc` removed, or would remove."""

    objects: tuple[str, ...]  # digests
    work: tuple[str, ...]  # keys of interrupted stages
    freed: int  # bytes


def usage(store: Store) -> Usage:
    """How much space the store takes."""
    with storing("measure the store", store.root):
        seen: set[tuple[int, int]] = set()
        return Usage(*(_tree_size(path, seen) for path in (store.objects, store.work, store.tmp)))


def register_root(store: Store, artifact: Path) -> None:
    """Keep what `artifact` links to from being collected, for as long as it exists at this path.

    A store that is read-only here cannot be told; whoever collects garbage in it elsewhere may then take
    what the artifact links to.
    """
    absolute = artifact.resolve()
    root = store.roots / hashlib.sha256(os.fsencode(absolute)).hexdigest()
    with storing("register the artifact with the store", store.roots):
        try:
            with locks.exclusive(store.locks / root.name, lambda _: None):
                if root.is_symlink():
                    os.utime(root, follow_symlinks=False)  # see _forget
                else:
                    root.symlink_to(absolute)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise


def referenced(store: Store) -> dict[str, list[Path]]:
    """The artifacts that link to each object, by the object's digest."""
    users: dict[str, list[Path]] = {}
    with storing("read the artifacts of the store", store.roots):
        for root in store.roots.iterdir():
            try:
                artifact = root.readlink()
                links = [path.readlink() for path in artifact.iterdir() if path.is_symlink()]
            except (FileNotFoundError, NotADirectoryError):
                continue  # the artifact was removed or moved away
            for link in links:  # STORE/objects/<digest>/data, whatever path led to the store then
                users.setdefault(link.parent.name, []).append(artifact)
    return users


def sweep(store: Store) -> None:
    """Remove what dead processes left behind, at the cost of listing three directories.

    Whatever a living process writes is under a lock that it holds, and stays.
    """
    # Housekeeping must not keep anybody from using a store that is read-only or full.
    with contextlib.suppress(OSError):
        for path in store.tmp.glob("trash.*"):
            remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        keys = {path.name.partition(".")[0] for path in store.tmp.iterdir()}
        keys |= {path.name for path in store.locks.iterdir()}
        finished = {path.name for path in store.work.iterdir() if _is_finished(store, path.name)}
        for key in keys | finished:
            with locks.try_exclusive(store.locks / key) as free:
                if not free:
                    continue
                for leftover in store.tmp.glob(f"{key}.*"):
                    remove_tree(leftover)
                if key in finished:
                    store.discard(store.work / key)


def gc(store: Store, *, older_than: float = DAY, dry_run: bool = False) -> Collected:
    """Remove outputs that no artifact links to and nobody has open, and scratch of interrupted stages.

    Args:
        store: an open store; the objects that it holds stay.
        older_than: seconds since an output was last used, or a scratch last written, that make it old
            enough. The default keeps what a build that failed a moment ago will want when it resumes.
        dry_run: only tell.

    Raises:
        StoreError: the store or an artifact cannot be read, or the store not be written.
    """
    horizon = time.time() - older_than
    if not dry_run:
        sweep(store)
    with storing("collect garbage in the store", store.root):
        objects, freed = _collect_objects(store, horizon, dry_run)
        work, freed_work = _collect_work(store, horizon, dry_run)
        if not dry_run:
            _forget(store)
    return Collected(tuple(objects), tuple(work), freed + freed_work)


def _collect_objects(store: Store, horizon: float, dry_run: bool) -> tuple[list[str], int]:
    removed, freed = [], 0
    seen: set[tuple[int, int]] = set()
    for digest in store.list_objects():
        fd = locks.seize(store.objects / digest / "files.json")
        if fd is None:
            continue
        try:
            # Artifacts are looked at under the lock: a build publishes its artifact while it shares the
            # locks of what the artifact links to, so either ours was refused or the artifact is seen.
            if os.fstat(fd).st_mtime > horizon or digest in referenced(store):
                continue
            removed.append(digest)
            freed += _tree_size(store.objects / digest, seen)
            if not dry_run:
                store.discard(store.objects / digest)
        finally:
            os.close(fd)
    return removed, freed


def _collect_work(store: Store, horizon: float, dry_run: bool) -> tuple[list[str], int]:
    removed, freed = [], 0
    for work_dir in sorted(store.work.iterdir()):
        with locks.try_exclusive(store.locks / work_dir.name) as free:
            if free and work_dir.exists() and _last_written(work_dir) <= horizon:
                removed.append(work_dir.name)
                freed += _tree_size(work_dir, set())
                if not dry_run:
                    store.discard(work_dir)
    return removed, freed


def _forget(store: Store) -> None:
    """Drop records of objects that are gone, and roots of artifacts that have long been gone."""
    for path in store.records.glob("*.json"):
        with locks.try_exclusive(store.locks / path.stem) as free:
            record = store.record(path.stem)
            if free and (record is None or not (store.objects / record.object).is_dir()):
                path.unlink(missing_ok=True)
    for root in store.roots.iterdir():
        with locks.try_exclusive(store.locks / root.name) as free:
            # A root is registered a moment before its artifact appears.
            is_stale = root.is_symlink() and not root.exists()
            if free and is_stale and root.lstat().st_mtime < time.time() - DAY:
                root.unlink()


def _is_finished(store: Store, key: str) -> bool:
    record = store.record(key)
    return record is not None and (store.objects / record.object).is_dir()


def _last_written(path: Path) -> float:
    return max(each.lstat().st_mtime for each in (path, *path.rglob("*")))


def _tree_size(path: Path, seen: set[tuple[int, int]]) -> int:
    """Bytes of the files below `path` that are not in `seen` (device, inode), which they are added to."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # a build goes on meanwhile
                status = Path(directory, name).lstat()
                if (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    total += status.st_size
    return total
