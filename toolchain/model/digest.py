"""The content digest of a model directory: the identity of a source model in the artifact store."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

from toolchain.errors import ModelError
from toolchain.model.checkpoint import weight_files
from toolchain.progress import Progress, Silent

SMALL_FILES = (
    *("config.json", "generation_config.json", "hf_quant_config.json", "model.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
"""What counts besides the weights. Read-me files, pictures and other formats of the weights do not."""

_BLOCK = 4 << 20  # bytes a read
_SETTLED = 2_000_000_000  # ns: a file younger than this can change again within its timestamp's grain

_Identity = tuple[int, int, int, int, int]
"""Size, mtime and ctime in ns, inode, device: a file that keeps all of them is taken as unchanged."""


def source_digest(model_dir: Path, *, cache: Path | None = None, progress: Progress | None = None) -> str:
    """The sha256, in hex, of what makes up a model: config, tokenizer and weights, by name and content.

    Where the directory lies, timestamps and other files in it do not matter.

    Args:
        model_dir: a model directory with safetensors weights.
        cache: a JSON file that remembers the digest of each file, so that an unchanged file is not read
            again. Processes may share it; a damaged, unreadable or unwritable one only costs time.
        progress: told the bytes that are hashed.

    Raises:
        ModelError: there are no weights, or a file cannot be read or changes while it is read.
    """
    files = [path for name in SMALL_FILES if (path := model_dir / name).is_file()] + weight_files(model_dir)
    identities = {path: _identity(path) for path in files}
    remembered = _load(cache)
    digests = {path: remembered.get((str(path.resolve()), identities[path])) for path in files}
    pending = [path for path, digest in digests.items() if digest is None]
    if pending:
        fresh = _hash_files(pending, identities, progress or Silent())
        digests |= fresh
        _remember(cache, {path: (identities[path], digest) for path, digest in fresh.items()})

    total = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        total.update(f"{path.name}\0{digests[path]}\n".encode())
    return total.hexdigest()


def _hash_files(
    paths: list[Path], identities: Mapping[Path, _Identity], progress: Progress
) -> dict[Path, str]:
    """The sha256 of each file; shards in parallel, since hashing releases the interpreter lock."""
    lock = threading.Lock()

    def advance(amount: int) -> None:
        with lock:
            progress.advance(amount)

    def hash_file(path: Path) -> str:
        content, buffer = hashlib.sha256(), bytearray(_BLOCK)
        try:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    content.update(memoryview(buffer)[:count])
                    advance(count)
        except OSError as error:
            raise ModelError(f"cannot read the file: {error.strerror}", where=str(path)) from None
        if _identity(path) != identities[path]:
            raise ModelError("the file changed while it was read", where=str(path), fix="run it again")
        return content.hexdigest()

    progress.start("hash model", sum(identities[path][0] for path in paths), "bytes")
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        return dict(zip(paths, pool.map(hash_file, paths), strict=True))


def _identity(path: Path) -> _Identity:
    try:
        stat = path.stat()
    except OSError as error:
        raise ModelError(f"cannot read the file: {error.strerror}", where=str(path)) from None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev


def _load(cache: Path | None) -> dict[tuple[str, _Identity], str]:
    """(resolved path, identity) -> sha256. Whatever is not well formed is left out."""
    if cache is None:
        return {}
    try:
        records = json.loads(cache.read_bytes())
        return {
            (path, cast(_Identity, tuple(record["identity"]))): record["sha256"]
            for path, record in records.items()
            if re.fullmatch("[0-9a-f]{64}", record["sha256"])
        }
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError):
        return {}


def _remember(cache: Path | None, fresh: Mapping[Path, tuple[_Identity, str]]) -> None:
    """Add digests to the cache. Two writers at once: one's additions are lost, which only costs time."""
    if cache is None:
        return
    youngest = time.time_ns() - _SETTLED
    records = {path: (identity, digest) for (path, identity), digest in _load(cache).items()}
    records |= {
        str(path.resolve()): (identity, digest)
        for path, (identity, digest) in fresh.items()
        if max(identity[1], identity[2]) < youngest
    }
    kept = {
        path: {"identity": identity, "sha256": digest}
        for path, (identity, digest) in records.items()
        if Path(path).exists()
    }
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    # A cache that cannot be written (full disk, read-only store) must not stop the build.
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(kept))
            temporary.replace(cache)
        finally:
            temporary.unlink(missing_ok=True)
