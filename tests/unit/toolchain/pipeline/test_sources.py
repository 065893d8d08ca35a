import json
import os
from pathlib import Path

import pytest

from toolchain.errors import UsageError
from toolchain.pipeline.sources import source_digest
from toolchain.pipeline.stage import Source
from toolchain.progress import Silent


@pytest.fixture
def model(tmp_path):
    model = tmp_path / "model"
    (model / "original").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", ".gitattributes", "README.md", "original/weights.pth"):
        (model / name).write_text(name)
        os.utime(model / name, (1e9, 1e9))
    return model


def _digest(store, path, *patterns):
    return source_digest(Source(path, patterns or ("*",)), store, Silent())


def test_only_matching_visible_files_count(store, model):
    patterns = ("*.json", "*.safetensors")
    before = _digest(store, model, *patterns)
    for name in (".gitattributes", "README.md", "original/weights.pth"):
        (model / name).write_text("changed")
    assert _digest(store, model, *patterns) == before
    (model / "config.json").write_text("changed")
    assert _digest(store, model, *patterns) != before


def test_a_new_name_is_a_new_digest(store, model):
    before = _digest(store, model)
    (model / "config.json").rename(model / "other.json")
    assert _digest(store, model) != before


def test_the_digest_does_not_depend_on_the_place_or_on_links(store, model, tmp_path):
    snapshot = tmp_path / "snapshot"  # as the Hugging Face cache lays a model out
    snapshot.mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (snapshot / name).symlink_to(model / name)
    assert _digest(store, snapshot) == _digest(store, model)


def test_sub_directories_count_if_asked_for(store, model):
    assert _digest(store, model, "**/*") != _digest(store, model)


def test_the_name_of_a_single_file_does_not_count(store, model, tmp_path):
    (tmp_path / "copy.bin").write_text("config.json")
    assert _digest(store, model / "config.json") == _digest(store, tmp_path / "copy.bin")


def test_a_file_is_hashed_once(store):
    library = Path(json.__file__).parent  # files that have not changed for a while
    before = _digest(store, library, "*.py")
    (cache,) = store.sources.iterdir()
    known = json.loads(cache.read_text())
    assert set(known) == {path.name for path in library.glob("*.py")}
    known["decoder.py"][-1] = "0" * 64  # only somebody who does not hash it again believes this
    cache.write_text(json.dumps(known))
    assert _digest(store, library, "*.py") != before


def test_a_damaged_cache_is_made_anew(store):
    library = Path(json.__file__).parent
    before = _digest(store, library, "*.py")
    (cache,) = store.sources.iterdir()
    cache.write_text("{")
    assert _digest(store, library, "*.py") == before


def test_an_edit_of_the_same_length_at_once_is_seen(store, model):
    path = model / "config.json"
    seen = set()
    for text in ("aaaa", "bbbb", "cccc", "dddd"):
        path.write_text(text)
        seen.add(_digest(store, model))
    assert len(seen) == 4


def test_a_source_that_does_not_exist(store, tmp_path):
    with pytest.raises(UsageError, match="missing: there is no such file or directory"):
        _digest(store, tmp_path / "missing")


def test_a_directory_without_a_matching_file(store, model):
    with pytest.raises(UsageError, match=r"the directory has no file that matches \*\.gguf"):
        _digest(store, model, "*.gguf")
