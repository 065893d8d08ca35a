"""Bytes on disk: canonical JSON, hashes, listings of directories, and writes that survive a power cut."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from toolchain.errors import BuildError, os_error
from toolchain.progress import Progress, Silent

_CHUNK = 1 << 20
_WORTH_SHOWING = 1 << 30  # bytes; less is hashed in the time that it takes to read a progress line


def canonical_json(value: Any) -> bytes:
    """`value` as JSON bytes that depend on its content alone, not on the order of any mapping.

    Raises:
        TypeError: a value that JSON cannot hold, or a key that is not a string (1 and "1" would collide).
        ValueError: NaN or an infinity.
    """
    _require_string_keys(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _require_string_keys(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key must be a string, not {key!r}")
            _require_string_keys(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _require_string_keys(inner)


@dataclass(frozen=True)
class FileEntry:
    """What identifies the content of one file."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Listing:
    """The content of a directory: files by relative POSIX path, and the directories that hold nothing.

    Empty directories count because Triton insists on the version directory of a model without files.
    """

    files: Mapping[str, FileEntry]
    empty_dirs: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """sha256 of `to_bytes()`: equal exactly when paths and contents are equal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """The canonical JSON form, which `from_bytes` reads."""
        files = {path: [entry.sha256, entry.size] for path, entry in self.files.items()}
        return canonical_json({"files": files, "empty_dirs": sorted(self.empty_dirs)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Listing:
        """Read `to_bytes()` back. Raises ValueError, KeyError or TypeError for anything else."""
        fields = json.loads(data)
        files = {path: FileEntry(sha256, size) for path, (sha256, size) in fields["files"].items()}
        return cls(files, tuple(fields["empty_dirs"]))

    def first_wrong_size(self, root: Path) -> tuple[Path, str] | None:
        """The first file under `root` that is missing or has another size, and what is wrong with it."""
        for name, entry in self.files.items():
            try:
                size = (root / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return root / name, "the file is missing"
            if size != entry.size:
                return root / name, f"the file holds {size} bytes, {entry.size} were written"
        return None

    def changed(self, root: Path, progress: Progress | None = None) -> list[tuple[Path, str]]:
        """Every listed file whose bytes under `root` differ, and what is wrong with it."""
        shown = progress or Silent()
        shown.start(f"verify {root.name}", self.size, "bytes")
        wrong = []
        for name, entry in self.files.items():
            wrong_size = Listing({name: entry}).first_wrong_size(root)
            if wrong_size:
                wrong.append(wrong_size)
                shown.advance(entry.size)
            elif sha256_file(root / name, shown) != entry.sha256:
                wrong.append((root / name, "the content has changed since it was written"))
        return wrong

    def foreign(self, root: Path) -> list[tuple[Path, str]]:
        """Every file under `root` that is not listed.

        Byte code is let pass: a server that runs Python models from here leaves it, and it harms nobody.
        """
        return [
            (path, "the file does not belong here")
            for path in _walk(root)
            if not path.is_dir()
            and path.relative_to(root).as_posix() not in self.files
            and path.parent.name != "__pycache__"
        ]


def announce_hashing(progress: Progress, what: str, total: int) -> Progress:
    """Start a progress of `total` bytes and return it, or one that nobody sees if that takes no time."""
    shown = progress if total >= _WORTH_SHOWING else Silent()
    shown.start(f"hash {what}", total, "bytes")
    return shown


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Hexadecimal sha256 of a file's bytes; `progress` advances by bytes."""
    with path.open("rb", buffering=0) as file:
        return _sha256(file.fileno(), progress or Silent())


def _sha256(fd: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    while count := os.readv(fd, [buffer]):
        digest.update(buffer[:count])
        progress.advance(count)
    return digest.hexdigest()


def seal(root: Path, progress: Progress) -> Listing:
    """Make a finished directory durable and its files read-only; return what it holds.

    Directories stay writable, so that `rm -r` of a whole store works without a chmod.

    Raises:
        BuildError: something in it is neither a file nor a directory.
        OSError: the disk is full, a file cannot be read, and the like.
    """
    paths = list(_walk(root))
    total = sum(path.lstat().st_size for path in paths)
    shown = announce_hashing(progress, "output", total)
    files, empty_dirs, directories = {}, [], [root]
    for path in paths:
        name = path.relative_to(root).as_posix()
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            directories.append(path)
            if not any(path.iterdir()):
                empty_dirs.append(name)
        elif stat.S_ISREG(mode):
            files[name] = _seal_file(path, shown)
        else:
            raise BuildError(
                "a stage's output may hold files and directories only",
                where=name,
                why=f"it is a {'symbolic link' if stat.S_ISLNK(mode) else 'special file'}",
            )
    for directory in reversed(directories):
        fsync_dir(directory)
    return Listing(files, tuple(sorted(empty_dirs)))


def _seal_file(path: Path, progress: Progress) -> FileEntry:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        sha256 = _sha256(fd, progress)
        # A file that is hard-linked from another object is read-only already and may be another user's.
        if status.st_mode & 0o222:
            os.fchmod(fd, stat.S_IMODE(status.st_mode) & 0o555)
        os.fsync(fd)
        return FileEntry(sha256, status.st_size)
    finally:
        os.close(fd)


def _walk(root: Path) -> Iterator[Path]:
    """Everything below `root`, parents before children, in an order that depends on the names alone."""
    for path in sorted(root.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def fsync_dir(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durable(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def exchange(one: Path, other: Path) -> None:
    """Swap two directories of one file system, in one step where that can be done.

    Where it cannot (NFS), `other` is missing for a moment, and `<one>.old` is there meanwhile.
    """
    at_cwd, rename_exchange = -100, 2
    libc = ctypes.CDLL(None, use_errno=True)
    with contextlib.suppress(AttributeError):  # a C library without renameat2
        if libc.renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise OSError(number, os.strerror(number), str(other))
    aside = one.with_name(f"{one.name}.old")
    other.rename(aside)
    one.rename(other)
    aside.rename(one)


def remove_tree(path: Path) -> None:
    """Remove a directory with all it holds; it may be gone, or go meanwhile."""
    while path.is_dir():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue


@contextlib.contextmanager
def storing(doing: str, where: Path) -> Iterator[None]:
    """Turn an `OSError` of the block into a `StoreError` that says what was being done, and where."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(where)
        raise os_error(error, doing) from error
