"""The content-addressed store: what each stage made, kept once, never modified.

    objects/<digest>/data/        the output of a stage, read-only; <digest> is the sha256 of files.json
    objects/<digest>/files.json   sha256 and size of every file of it
    records/<key>.json            how a stage with this key came out, and which object it made
    work/<key>/                   scratch of a stage that runs or was interrupted
    tmp/<key>.<random>/           what the holder of the lock of <key> is writing now
    tmp/trash.<random>/           on its way out; anybody may finish removing it
    locks/<key>                   held while that stage runs
    roots/<hash>                  a link to each artifact that refers to objects
    sources/<hash>.json           digests of files outside the store, so that they are hashed once

An object appears by one rename, after all its bytes are on the disk and its record is in place: a kill
at any instant leaves nothing half-written visible and loses nothing that was finished. An object that is
open holds a shared lock on its files.json, so the garbage collector of another process leaves it alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolchain.errors import StoreError
from toolchain.pipeline import locks
from toolchain.pipeline.files import Listing, fsync_dir, remove_tree, seal, storing, write_durable
from toolchain.pipeline.record import Record
from toolchain.progress import Progress

_NO_SUCH = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True)
class StoredObject:
    """One directory in the store."""

    digest: str
    path: Path  # the directory itself
    listing: Listing


@dataclass(frozen=True)
class Staging:
    """Where the holder of a key's lock writes."""

    key: str
    container: Path
    out_dir: Path
    work_dir: Path


class Store:
    """A store, and the objects that this process holds open in it.

    Use it as a context manager: objects that it returned are safe from every garbage collector until it
    is closed. Everything that fails on the way to the disk is a `StoreError`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.objects = self.root / "objects"
        self.records = self.root / "records"
        self.work = self.root / "work"
        self.tmp = self.root / "tmp"
        self.locks = self.root / "locks"
        self.roots = self.root / "roots"
        self.sources = self.root / "sources"
        self._held: dict[str, int] = {}  # descriptors with shared locks, by digest

    @classmethod
    def open(cls, root: Path | None = None) -> Store:
        """Open the store at `root`, else $LLMBUILD_STORE, else ~/.cache/llmbuild; make it if need be."""
        named = root or os.environ.get("LLMBUILD_STORE") or Path.home() / ".cache" / "llmbuild"
        with storing("open the store", Path(named)):
            store = cls(Path(named).expanduser())
            if store.root.exists() and not store.root.is_dir():
                raise StoreError(
                    "the store is not a directory",
                    where=str(store.root),
                    fix="point LLMBUILD_STORE at a directory",
                )
            for directory in (
                store.objects, store.records, store.work, store.tmp, store.locks, store.roots, store.sources
            ):  # fmt: skip
                directory.mkdir(parents=True, exist_ok=True)
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of every object; a garbage collector may now take those that no artifact refers to."""
        while self._held:
            os.close(self._held.popitem()[1])

    # Reading

    def record(self, key: str) -> Record | None:
        """What is known of the stage with this key; None if it never finished here.

        A record that cannot be read counts as none: the stage runs again and writes it anew.
        """
        with storing("read the store", self.records):
            try:
                return Record.from_bytes((self.records / f"{key}.json").read_bytes())
            except (*_NO_SUCH, ValueError, KeyError, TypeError):
                return None

    def find(self, key: str) -> tuple[Record, StoredObject] | None:
        """The finished output for this key, held open; None if it has to be made.

        Raises:
            StoreError: it is there but damaged. Sizes are checked, bytes are not (`verify` does).
        """
        record = self.record(key)
        if record is None:
            return None
        stored = self.get(record.object)
        if stored is None:
            return None
        wrong = stored.listing.first_wrong_size(stored.path)
        if wrong:
            raise damaged(record.stage, *wrong)
        self._touch(stored)
        return record, stored

    def get(self, digest: str) -> StoredObject | None:
        """Open an object and hold it; None if it is not (or no longer) here."""
        container = self.objects / digest
        with storing("read the store", container):
            if digest not in self._held:
                fd = locks.share(container / "files.json")
                if fd is None:
                    return None
                self._held[digest] = fd
            data = (container / "files.json").read_bytes()
        if hashlib.sha256(data).hexdigest() != digest:
            raise damaged(None, container / "files.json", "the content has changed since it was written")
        return StoredObject(digest, container / "data", Listing.from_bytes(data))

    # Writing

    @contextlib.contextmanager
    def lock(self, key: str, on_wait: Callable[[str], None]) -> Iterator[None]:
        """Be the only process that works on `key`; `on_wait` is told who does if that is another one."""
        with contextlib.ExitStack() as stack:
            with storing("lock the store", self.locks):
                stack.enter_context(locks.exclusive(self.locks / key, on_wait))
            yield

    @contextlib.contextmanager
    def staging(self, key: str) -> Iterator[Staging]:
        """Fresh output and surviving scratch directories, for the holder of the lock of `key`.

        The output is gone afterwards unless it was committed; the scratch stays unless it was.
        """
        container = self.tmp / f"{key}.{secrets.token_hex(8)}"
        staging = Staging(key, container, container / "object" / "data", self.work / key)
        try:
            with storing("write to the store", self.tmp):
                for leftover in self.tmp.glob(f"{key}.*"):  # of a process that died with the lock
                    remove_tree(leftover)
                staging.out_dir.mkdir(parents=True)
                staging.work_dir.mkdir(exist_ok=True)
            yield staging
        finally:
            remove_tree(container)

    def seal(self, staging: Staging, progress: Progress) -> Listing:
        """Make the finished output durable and read-only, and list it."""
        with storing("finish the output", staging.out_dir):
            return seal(staging.out_dir, progress)

    def commit(self, staging: Staging, listing: Listing, record: Record) -> StoredObject:
        """Publish a sealed output and its record, hold the output open, and drop the scratch."""
        with storing("publish the output", self.objects):
            prepared = staging.out_dir.parent
            write_durable(prepared / "files.json", listing.to_bytes())
            fsync_dir(prepared)
            # The record goes first: it means nothing until its object is there, which is one rename.
            write_durable(staging.container / "record.json", record.to_bytes())
            (staging.container / "record.json").rename(self.records / f"{record.key}.json")
            fsync_dir(self.records)
            self._place(prepared, listing)
            fsync_dir(self.objects)
            self.discard(staging.work_dir)
        return StoredObject(listing.digest, self.objects / listing.digest / "data", listing)

    def _place(self, prepared: Path, listing: Listing) -> None:
        """Give a complete object its place, or find that the same one is there, and hold it."""
        target = self.objects / listing.digest
        while True:
            fd = locks.share(prepared / "files.json")
            assert fd is not None
            try:
                prepared.rename(target)
            except OSError as error:
                os.close(fd)
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                self._let_go(listing.digest)
                self._held[listing.digest] = fd
                return
            # A stage that was forced, or another one, has made the same bytes before.
            if self._is_sound(listing):
                return
            self.discard(target)

    def _is_sound(self, listing: Listing) -> bool:
        """Whether the object of this listing is here with all its bytes; it is held if so."""
        self._let_go(listing.digest)  # what we hold may be what was removed or replaced behind our back
        try:
            stored = self.get(listing.digest)
        except StoreError:
            return False
        if stored is None or listing.changed(stored.path) or listing.foreign(stored.path):
            return False
        self._touch(stored)
        return True

    def _touch(self, stored: StoredObject) -> None:
        """Remember that an object was wanted now, for the garbage collector."""
        with contextlib.suppress(OSError):  # a read-only store cannot remember
            os.utime(stored.path.parent / "files.json")

    def _let_go(self, digest: str) -> None:
        if digest in self._held:
            os.close(self._held.pop(digest))

    def discard(self, path: Path) -> None:
        """Make a directory of the store vanish in one step, then free its space."""
        trash = self.tmp / f"trash.{secrets.token_hex(8)}"
        with contextlib.suppress(FileNotFoundError):
            path.rename(trash)
            remove_tree(trash)

    # Looking after it

    def list_records(self) -> list[Record]:
        """Every readable record whose object is here, by time of creation."""
        with storing("list the store", self.records):
            keys = [path.stem for path in self.records.glob("*.json")]
        records = [record for key in keys if (record := self.record(key))]
        return sorted((r for r in records if (self.objects / r.object).is_dir()), key=lambda r: r.created)

    def list_objects(self) -> list[str]:
        """The digest of every object."""
        with storing("list the store", self.objects):
            return sorted(path.name for path in self.objects.iterdir())

    def verify(self, progress: Progress | None = None) -> list[StoreError]:
        """Read every byte of every object; return what is damaged."""
        stages = {record.object: record.stage for record in self.list_records()}
        problems = []
        for digest in self.list_objects():
            was_held = digest in self._held
            try:
                stored = self.get(digest)
                if stored is not None:
                    with storing("read the store", stored.path):
                        wrong = stored.listing.changed(stored.path, progress)
                        wrong += stored.listing.foreign(stored.path)
                    problems += [damaged(stages.get(digest), *one) for one in wrong]
            except StoreError as error:
                problems.append(error)
            if not was_held:
                self._let_go(digest)
        return problems


def damaged(stage: str | None, path: Path, why: str) -> StoreError:
    """The error for a stored file that is not what was written."""
    return StoreError(
        f"a stored output{f' of stage {stage}' if stage else ''} is damaged",
        where=str(path),
        why=why,
        fix=f"llmbuild build RECIPE --force {stage or 'STAGE'}",
    )
