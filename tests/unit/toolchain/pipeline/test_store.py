import os
from pathlib import Path

import pytest

from toolchain.errors import StoreError
from toolchain.pipeline.runner import run_pipeline
from toolchain.pipeline.stage import Stage
from toolchain.pipeline.store import Store


def _write(text: str):
    return lambda context: (context.out_dir / "file").write_text(text) and None


def test_the_environment_names_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMBUILD_STORE", str(tmp_path / "elsewhere"))
    assert Store.open().root == tmp_path / "elsewhere"


def test_by_default_it_is_in_the_cache_of_the_user(tmp_path, monkeypatch):
    monkeypatch.delenv("LLMBUILD_STORE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store.open().root == tmp_path / ".cache" / "llmbuild"


def test_verify_names_every_damaged_file(toy, store):
    parts, joined = run_pipeline(toy.stages(), store)
    for victim in (parts.path / "sub" / "0.txt", joined.path / "all.txt"):
        victim.chmod(0o644)
        content = victim.read_bytes()
        victim.write_bytes(content[:-1] + b"#")  # same size
    (parts.path / "sub" / "2.txt").unlink()
    (parts.path / "more").write_text("")
    problems = sorted(f"{Path(str(p.where)).name}: {p.what}: {p.why}" for p in store.verify())
    changed, missing = "the content has changed since it was written", "the file is missing"
    assert problems == [
        f"0.txt: a stored output of stage parts is damaged: {changed}",
        f"2.txt: a stored output of stage parts is damaged: {missing}",
        f"all.txt: a stored output of stage joined is damaged: {changed}",
        "more: a stored output of stage parts is damaged: the file does not belong here",
    ]


def test_byte_code_of_a_server_is_no_damage(toy, store):
    (result, _) = run_pipeline(toy.stages(), store)
    (result.path / "sub" / "__pycache__").mkdir()
    (result.path / "sub" / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"")
    assert store.verify() == []


def test_force_replaces_an_output_whose_bytes_have_changed(toy, store):
    (result, _) = run_pipeline(toy.stages(), store)
    victim = result.path / "sub" / "0.txt"
    victim.chmod(0o644)
    victim.write_bytes(victim.read_bytes()[:-1] + b"#")
    run_pipeline(toy.stages(), store, force={"parts"})
    assert store.verify() == []


def test_a_damaged_list_of_files(toy, store):
    (result, _) = run_pipeline(toy.stages(), store)
    (result.path.parent / "files.json").write_text("{}")
    with pytest.raises(StoreError, match="a stored output is damaged"):
        run_pipeline(toy.stages(), store)
    assert len(store.verify()) == 1
    run_pipeline(toy.stages(), store, force={"parts"})
    assert store.verify() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 99}', b'{"schema": 1}'])
def test_a_record_that_cannot_be_read_is_written_anew(toy, store, content):
    (result, _) = run_pipeline(toy.stages(), store)
    (store.records / f"{result.record.key}.json").write_bytes(content)
    assert [r.outcome for r in run_pipeline(toy.stages(), store)] == ["run", "cached"]
    assert store.record(result.record.key) is not None


def test_two_stages_with_the_same_output_share_it(store):
    one, two = run_pipeline([Stage("one", 1, _write("x")), Stage("two", 1, _write("x"))], store)
    assert one.path == two.path
    assert [record.stage for record in store.list_records()] == ["one", "two"]
    assert len(store.list_objects()) == 1


def test_an_output_may_share_files_with_an_earlier_one(toy, store):
    def link(context) -> None:
        os.link(context.inputs["parts"] / "sub" / "0.txt", context.out_dir / "same.txt")

    stages = [toy.stages()[0], Stage("link", 1, link, inputs=("parts",))]
    parts, linked = run_pipeline(stages, store)
    assert (linked.path / "same.txt").samefile(parts.path / "sub" / "0.txt")
    assert store.verify() == []


def test_a_store_can_be_removed_with_rm(toy, store, fork):
    run_pipeline(toy.stages(), store)
    assert os.system(f"rm -r --interactive=never {store.root}") == 0
