"""The digest follows the content and nothing else; its cache may be stale, shared, damaged or forbidden."""

from __future__ import annotations

import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolchain.errors import ModelError
from toolchain.model import digest
from toolchain.model.digest import source_digest


@pytest.fixture
def model(sharded_dir: Path, tmp_path: Path) -> Path:
    """A copy of the sharded model that a test may change."""
    return Path(shutil.copytree(sharded_dir, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "sources.json"


class Bytes:
    """A Progress that counts what was hashed."""

    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        self.total = total

    def advance(self, amount: int = 1) -> None:
        self.done += amount

    def note(self, text: str) -> None: ...


def hashed(model: Path, cache: Path | None) -> int:
    """How many bytes a call reads."""
    progress = Bytes()
    source_digest(model, cache=cache, progress=progress)
    assert progress.done == progress.total
    return progress.done


@pytest.fixture
def young_files_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares a test the two seconds after which a file is remembered."""
    monkeypatch.setattr(digest, "_SETTLED", 0)


def test_content_and_names_decide(model: Path, tmp_path: Path) -> None:
    plain = source_digest(model)
    assert len(plain) == 64
    elsewhere = Path(shutil.copytree(model, tmp_path / "elsewhere"))
    (elsewhere / "README.md").write_text("no part of the model")
    (elsewhere / "pytorch_model.bin").write_bytes(b"nor is this")
    assert source_digest(elsewhere) == plain

    (elsewhere / "tokenizer.json").write_text("{}")
    with_tokenizer = source_digest(elsewhere)
    (elsewhere / "tokenizer.json").rename(elsewhere / "vocab.json")
    assert len({plain, with_tokenizer, source_digest(elsewhere)}) == 3


def test_one_flipped_bit_of_the_weights(model: Path) -> None:
    before = source_digest(model)
    shard = sorted(model.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert source_digest(model) != before


def test_cache_saves_reading_until_a_file_changes(model: Path, cache: Path) -> None:
    plain = source_digest(model)
    assert hashed(model, cache) > 0
    assert not json.loads(cache.read_text())  # too young to be trusted
    time.sleep(2.1)
    everything = hashed(model, cache)
    assert everything > 0
    assert hashed(model, cache) == 0
    assert source_digest(model, cache=cache) == plain

    # Same size, and the old modification time put back: the change is seen all the same.
    config = model / "config.json"
    stat = config.stat()
    config.write_bytes(config.read_bytes().replace(b"silu", b"gelu"))
    os.utime(config, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hashed(model, cache) == config.stat().st_size
    assert source_digest(model, cache=cache) == source_digest(model) != plain

    (model / "generation_config.json").unlink()
    assert source_digest(model, cache=cache) == source_digest(model)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[]", b"3", b'{"x": 1}', b'{"x": {}}', b"[" * 100_000),
        b'{"x": {"identity": 3, "sha256": 4}}',
        b'{"x": {"identity": [[1]], "sha256": "' + b"0" * 64 + b'"}}',
    ],
)
def test_damaged_cache_costs_only_time(model: Path, cache: Path, content: bytes) -> None:
    cache.parent.mkdir()
    cache.write_bytes(content)
    assert source_digest(model, cache=cache) == source_digest(model)
    assert json.loads(cache.read_text()) == {}


def test_unwritable_cache_costs_only_time(model: Path, cache: Path) -> None:
    cache.mkdir(parents=True)  # a directory in its place
    assert source_digest(model, cache=cache) == source_digest(model)
    assert list(cache.parent.iterdir()) == [cache]
    assert source_digest(model, cache=Path("/proc/sources.json")) == source_digest(model)


@pytest.mark.usefixtures("young_files_are_trusted")
def test_many_writers_at_once(model: Path, cache: Path, tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(model, tmp_path / f"copy{i}")) for i in range(4)]
    with ThreadPoolExecutor(8) as pool:
        digests = set(pool.map(lambda path: source_digest(path, cache=cache), copies * 4))
    assert digests == {source_digest(model)}
    assert len(json.loads(cache.read_text())) > 0
    assert list(cache.parent.iterdir()) == [cache]


@pytest.mark.usefixtures("young_files_are_trusted")
def test_vanished_files_leave_the_cache(model: Path, cache: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(model, tmp_path / "other"))
    source_digest(other, cache=cache)
    shutil.rmtree(other)
    source_digest(model, cache=cache)
    assert {Path(path).parent for path in json.loads(cache.read_text())} == {model}


def test_no_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"there is neither model\.safetensors nor"):
        source_digest(tmp_path)


def test_weights_behind_links(model: Path, tmp_path: Path) -> None:
    """The layout of the Hugging Face cache: a snapshot of links to blobs."""
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in model.iterdir():
        (snapshot / path.name).symlink_to(path)
    assert source_digest(snapshot) == source_digest(model)
