"""Data sets as sources of stages."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from toolchain.errors import UsageError
from toolchain.pipeline.sources import source_digest
from toolchain.pipeline.texts import find_texts, read_text, text_config, text_source
from toolchain.progress import Silent
from toolchain.recipe import Recipe
from toolchain.text.files import TextFiles

COMMITS = "a" * 40, "b" * 40


def recipe(calibration: Any = None, kl: Any = None, method: str = "awq") -> Recipe:
    quantization = {"method": method, "calibration": calibration}
    gates = {"kl": None if kl is None else {"max": 1} | kl}
    source = {"source": "o/n"}
    fields = {"schema": 1, "name": "r", "model": source, "quantization": quantization, "gates": gates}
    return Recipe.model_validate(fields)


def snapshot(root: Path, commit: str, **files: str) -> TextFiles:
    """A data set of the Hub, laid out as in its cache."""
    directory = root / "hub" / "datasets--o--n" / "snapshots" / commit
    for name, content in {"README.md": commit, **files}.items():
        blob = root / "blobs" / f"{commit}-{name}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_text(content)
        link = directory / "data" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return TextFiles("hf:o/n", tuple(directory / "data" / name for name in files), "body", commit)


def test_only_what_is_wanted_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    here, absent = {"dataset": f"file:{tmp_path}/a.txt"}, {"dataset": "file:/absent.txt"}
    found = find_texts(recipe(here, absent), calibration=True, gates=False)
    assert found == {"calibration": TextFiles.local(tmp_path / "a.txt")}
    assert find_texts(recipe(absent, here, "none"), calibration=True, gates=True).keys() == {"kl"}
    with pytest.raises(UsageError, match=r"/absent\.txt: there is no such held-out text file"):
        find_texts(recipe(here, absent), calibration=True, gates=True)
    with pytest.raises(UsageError, match="there is no such calibration file"):
        find_texts(recipe(absent), calibration=True, gates=True)


def test_a_local_file_is_known_by_its_bytes_and_form(store: Any, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    texts = [TextFiles.local(tmp_path / name) for name in ("a.txt", "b.txt", "c.jsonl")]
    digests = [source_digest(text_source(text), store, Silent()) for text in texts]
    assert digests[0] == digests[1] == digests[2]
    assert text_config(texts[0]) == text_config(texts[1]) != text_config(texts[2])
    for text in texts:
        config = json.loads(json.dumps(text_config(text)))
        assert read_text(text_source(text).path, config) == text


def test_a_hub_data_set_is_known_by_its_files(store: Any, tmp_path: Path) -> None:
    before, after = (snapshot(tmp_path, commit, **{"x[0].txt": "x", "y.txt": "y"}) for commit in COMMITS)
    one, other = text_source(before), text_source(after)
    assert source_digest(one, store, Silent()) == source_digest(other, store, Silent())
    assert text_config(before) == text_config(after)  # the commit changed the card alone
    for text in (before, after):
        assert read_text(text_source(text).path, json.loads(json.dumps(text_config(text)))) == text

    changed = snapshot(tmp_path, "c" * 40, **{"x[0].txt": "x", "y.txt": "z"})
    assert source_digest(text_source(changed), store, Silent()) != source_digest(one, store, Silent())
    fewer = snapshot(tmp_path, "d" * 40, **{"x[0].txt": "x"})
    assert source_digest(text_source(fewer), store, Silent()) != source_digest(one, store, Silent())
    assert text_config(fewer) != text_config(before)
