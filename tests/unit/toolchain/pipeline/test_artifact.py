import json
import os
import shutil
import subprocess

import pytest

from toolchain.errors import StoreError, UsageError
from toolchain.pipeline.artifact import Artifact, publish, require_replaceable
from toolchain.pipeline.collect import gc
from toolchain.pipeline.runner import run_pipeline
from toolchain.pipeline.store import Store


@pytest.fixture
def path(tmp_path, toy):
    path = tmp_path / "artifacts" / "toy"
    toy.build(tmp_path / "store", path)
    return path


def test_what_is_in_it(path, toy, store):
    artifact = Artifact.open(path)
    manifest = artifact.manifest
    assert sorted(p.name for p in path.iterdir()) == ["joined", "manifest.json", "parts", "recipe.yaml"]
    assert artifact.recipe.read_text() == "name: toy\n"
    assert (manifest.name, list(manifest.stages)) == ("toy", ["parts", "joined"])
    assert list(manifest.files) == [
        "recipe.yaml",
        *(f"parts/sub/{n}.txt" for n in range(3)),
        "joined/all.txt",
    ]
    assert manifest.files["recipe.yaml"].sha256 == manifest.recipe_sha256
    assert artifact.facts("joined") == {"parts": 3}
    assert artifact.facts("engine") == {}
    assert artifact.dir("joined").parent.parent == store.objects
    parts, joined = manifest.stages.values()
    assert joined.record.inputs == {"parts": parts.record.object}
    assert joined.outcome == "run"
    assert json.loads((path / "manifest.json").read_text())["schema"] == 1
    artifact.verify()


def test_publishing_the_same_again_writes_nothing(path, toy, tmp_path):
    before = (path.stat().st_ino, (path / "manifest.json").read_bytes())
    toy.build(tmp_path / "store", path)
    assert (path.stat().st_ino, (path / "manifest.json").read_bytes()) == before


def test_gates_are_recorded(path, toy, store):
    gates = {"perplexity": {"value": 12.5, "passed": True}}
    publish(path, run_pipeline(toy.stages(), store), store, recipe="name: toy\n", gates=gates)
    manifest = Artifact.open(path).manifest
    assert manifest.gates == gates
    assert [entry.outcome for entry in manifest.stages.values()] == ["cached", "cached"]


def test_a_build_that_stops_early_has_an_artifact_too(tmp_path, toy):
    toy.build(tmp_path / "store", tmp_path / "toy", until="parts")
    artifact = Artifact.open(tmp_path / "toy")
    with pytest.raises(UsageError, match=r"(?s)no output of stage joined.*it holds parts"):
        artifact.dir("joined")


def test_a_copy_without_links_needs_no_store(path, tmp_path):
    subprocess.run(["cp", "-rL", path, tmp_path / "copy"], check=True)
    shutil.rmtree(tmp_path / "store")
    copy = Artifact.open(tmp_path / "copy")
    copy.verify()
    assert copy.dir("parts") == tmp_path / "copy" / "parts"
    with copy.in_use():
        pass


def test_it_may_be_moved(path, tmp_path):
    path.rename(tmp_path / "moved")
    Artifact.open(tmp_path / "moved").verify()


def test_links_that_lead_nowhere(path):
    shutil.rmtree(Artifact.open(path).dir("joined"))
    with pytest.raises(
        StoreError, match=r"(?s)output of stage joined is gone from the store.*fix: llmbuild build"
    ):
        Artifact.open(path)


def test_a_rebuild_mends_what_was_collected(path, toy, tmp_path):
    path.rename(tmp_path / "moved")  # where the store does not know it
    assert len(gc(Store.open(tmp_path / "store"), older_than=0).objects) == 2
    with pytest.raises(StoreError, match="is gone from the store"):
        Artifact.open(tmp_path / "moved")
    toy.build(tmp_path / "store", tmp_path / "moved")
    Artifact.open(tmp_path / "moved").verify()


def test_damage_is_found_by_size_at_once_and_by_content_when_verified(path):
    artifact = Artifact.open(path)
    victim = artifact.dir("joined") / "all.txt"
    victim.chmod(0o644)
    victim.write_bytes(bytes(victim.stat().st_size))
    Artifact.open(path)
    with pytest.raises(
        StoreError, match=r"(?s)1 of the artifact's files.*all\.txt: the content has changed.*--force joined"
    ):
        artifact.verify()
    os.truncate(victim, 1)
    with pytest.raises(StoreError, match=r"all\.txt: the file holds 1 bytes"):
        Artifact.open(path)


def test_an_edited_recipe_is_noticed(path):
    path.joinpath("recipe.yaml").write_text("name: foo\n")
    with pytest.raises(StoreError, match=r"recipe\.yaml: the content has changed"):
        Artifact.open(path).verify()


@pytest.mark.parametrize("what", ["missing", "empty", "file"])
def test_what_is_not_an_artifact(tmp_path, what):
    if what == "empty":
        (tmp_path / what).mkdir()
    if what == "file":
        (tmp_path / what).write_text("")
    with pytest.raises(UsageError, match=r"(?s)there is no .* here.*llmbuild build RECIPE makes one"):
        Artifact.open(tmp_path / what)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema": 1}', b"\xff"])
def test_a_manifest_that_cannot_be_read(path, content):
    (path / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match="the manifest cannot be read"):
        Artifact.open(path)


def test_a_manifest_of_another_time(path):
    (path / "manifest.json").write_text('{"schema": 2, "llmbuild": "9.0"}')
    with pytest.raises(UsageError, match=r"(?s)has schema 2, this llmbuild reads 1.*use llmbuild 9.0"):
        Artifact.open(path)


@pytest.mark.parametrize("what", ["file", "directory", "link"])
def test_what_a_build_did_not_make_is_never_replaced(path, toy, tmp_path, what):
    place = tmp_path / what
    if what == "file":
        place.write_text("mine")
    elif what == "link":
        place.symlink_to(path)
    else:
        path.rename(place)
        (place / "notes").mkdir()
    with pytest.raises(
        UsageError, match="an artifact cannot be published here: something else is in its place"
    ):
        require_replaceable(place)
    with pytest.raises(UsageError, match="something else is in its place"):
        toy.build(tmp_path / "store", place)
    assert place.exists()


def test_leftovers_of_crashes_go_and_those_of_others_stay(path, toy, tmp_path):
    for name in (".toy.0123456789abcdef", ".toy.x.0123456789abcdef", ".toy"):
        (path.parent / name).mkdir()
    toy.build(tmp_path / "store", path)
    assert sorted(p.name for p in path.parent.iterdir()) == [".toy", ".toy.x.0123456789abcdef", "toy"]


def test_a_reader_never_sees_half_of_a_rebuild(path, toy, tmp_path, fork):
    def rebuild():
        for turn in range(40):
            toy.source.write_text(f"text {turn % 2}\n")
            toy.build(tmp_path / "store", path)

    child = fork(rebuild)
    seen = set()
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        artifact = Artifact.open(path)
        artifact_key = artifact.manifest.stages["joined"].record.object
        assert artifact.dir("joined").parent.name == artifact_key
        seen.add(artifact_key)
    child.result()
    assert len(seen) > 1


def test_a_report_is_one_of_the_artifacts_files(toy, store, tmp_path):
    path = tmp_path / "toy"
    results = run_pipeline(toy.stages(), store)
    assert publish(path, results, store, recipe="name: toy\n").report is None
    artifact = publish(path, results, store, recipe="name: toy\n", report="<p>good</p>")
    assert artifact.report == path / "report.html"
    assert artifact.report.read_text() == "<p>good</p>"
    artifact.verify()
    artifact.report.write_text("<p>fine</p>")
    with pytest.raises(StoreError, match=r"1 of the artifact's files are not what was published"):
        artifact.verify()
