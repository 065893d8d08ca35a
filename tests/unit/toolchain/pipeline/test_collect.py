import os
import shutil
import time

import pytest

from toolchain.errors import QuantizeError
from toolchain.pipeline.artifact import Artifact, publish
from toolchain.pipeline.collect import DAY, gc, sweep, usage
from toolchain.pipeline.runner import run_pipeline
from toolchain.pipeline.store import Store


def _age(store, seconds=2 * DAY):
    for path in [*store.objects.glob("*/files.json"), *store.work.rglob("*")]:
        os.utime(path, (time.time() - seconds,) * 2)


def test_what_an_artifact_links_to_stays_until_that_is_removed(tmp_path, toy):
    toy.build(tmp_path / "store", tmp_path / "toy")
    store = Store.open(tmp_path / "store")
    assert gc(store, older_than=0).objects == ()
    Artifact.open(tmp_path / "toy").verify()
    shutil.rmtree(tmp_path / "toy")
    before = usage(store)
    planned = gc(store, older_than=0, dry_run=True)
    assert usage(store) == before
    assert gc(store, older_than=0) == planned
    assert len(planned.objects) == 2
    assert planned.freed == before.objects > 0
    assert usage(store).total == 0
    assert list(store.records.iterdir()) == []


def test_what_was_used_lately_stays(tmp_path, toy):
    store = Store.open(tmp_path / "store")
    with store:
        run_pipeline(toy.stages(), store)
    assert gc(store).objects == ()
    _age(store)
    with store:
        run_pipeline(toy.stages(), store, until="parts")
    assert len(gc(store).objects) == 1  # only what `joined` made


def test_what_is_open_stays(toy, store):
    run_pipeline(toy.stages(), store)
    assert gc(Store.open(store.root), older_than=0).objects == ()
    store.close()
    assert len(gc(Store.open(store.root), older_than=0).objects) == 2


def test_an_artifact_in_use_survives_being_replaced(tmp_path, toy):
    toy.build(tmp_path / "store", tmp_path / "toy")
    old = Artifact.open(tmp_path / "toy")
    toy.source.write_text("another text")
    with old.in_use():
        toy.build(tmp_path / "store", tmp_path / "toy")
        assert gc(Store.open(tmp_path / "store"), older_than=0).objects == ()
        assert (old.dir("joined") / "all.txt").read_text().startswith("0: a text")
    assert len(gc(Store.open(tmp_path / "store"), older_than=0).objects) == 2
    assert (Artifact.open(tmp_path / "toy").dir("joined") / "all.txt").read_text().startswith("0: another")


def test_the_scratch_of_an_interrupted_stage_stays_for_a_day(toy, store):
    def fail(index):
        if index == 1:
            raise QuantizeError("no")

    toy.on_part = fail
    with pytest.raises(QuantizeError, match="no"):
        run_pipeline(toy.stages(), store)
    assert gc(store).work == ()
    _age(store)
    collected = gc(store)
    assert len(collected.work) == 1
    assert collected.freed > 0
    assert list(store.work.iterdir()) == []


def test_a_running_build_loses_nothing(tmp_path, toy, fork):
    started, go_on = os.pipe(), os.pipe()

    def hang(index):
        if index == 1:
            os.write(started[1], b"!")
            os.read(go_on[0], 1)

    toy.build(tmp_path / "store", tmp_path / "toy")  # to be replaced
    toy.source.write_text("another text")
    toy.on_part = hang
    child = fork(lambda: toy.build(tmp_path / "store", tmp_path / "toy") and None)
    os.read(started[0], 1)
    store = Store.open(tmp_path / "store")
    running = sorted(path for path in (*store.tmp.rglob("*"), *store.work.rglob("*")))
    assert running != []
    _age(store)
    collected = gc(store, older_than=0)
    sweep(store)
    assert (collected.objects, collected.work) == ((), ())
    assert sorted(path for path in (*store.tmp.rglob("*"), *store.work.rglob("*"))) == running
    os.write(go_on[1], b"!")
    child.result()
    assert len(gc(store, older_than=0).objects) == 2  # the artifact's former ones
    Artifact.open(tmp_path / "toy").verify()


def test_builds_and_collections_at_full_speed(tmp_path, toy, fork):
    """Every artifact is whole when its build returns, whatever is collected meanwhile."""

    def collect():
        store = Store.open(tmp_path / "store")
        while not (tmp_path / "stop").exists():
            gc(store, older_than=0)

    collector = fork(collect)
    removed = 0
    for turn in range(60):
        toy.build(tmp_path / "store", tmp_path / "toy")
        Artifact.open(tmp_path / "toy").verify()
        if turn % 3 == 0:
            shutil.rmtree(tmp_path / "toy")
            removed += 1
    (tmp_path / "stop").touch()
    collector.result()
    assert 1 < toy.done().count("joined") <= removed + 1  # things were collected, and only unused ones


def test_a_removed_artifact_is_forgotten_after_a_day(tmp_path, toy):
    toy.build(tmp_path / "store", tmp_path / "toy")
    store = Store.open(tmp_path / "store")
    shutil.rmtree(tmp_path / "toy")
    gc(store)
    (root,) = store.roots.iterdir()
    os.utime(root, (time.time() - 2 * DAY,) * 2, follow_symlinks=False)
    gc(store)
    assert list(store.roots.iterdir()) == []


def test_an_artifact_that_another_path_to_the_store_leads_to(tmp_path, toy):
    (tmp_path / "alias").symlink_to("store")
    (tmp_path / "store").mkdir()
    toy.build(tmp_path / "alias", tmp_path / "toy")
    assert gc(Store.open(tmp_path / "store"), older_than=0).objects == ()


def test_shared_files_count_once(tmp_path, store):
    for name in ("a", "b"):
        (store.work / name).mkdir()
    (store.work / "a" / "file").write_bytes(bytes(1000))
    os.link(store.work / "a" / "file", store.work / "b" / "file")
    assert usage(store).work == 1000


def test_publishing_needs_no_store_that_can_be_written(tmp_path, toy, with_mounts):
    disk = tmp_path / "disk"
    disk.mkdir()

    def build(mounts):
        mounts.tmpfs(disk, "size=1m")
        with Store.open(disk / "store") as store:
            results = run_pipeline(toy.stages(), store)
            mounts.tmpfs(disk, "size=1m", mounts.remount | mounts.read_only)
            publish(tmp_path / "toy", results, store, recipe="a: 1\n").verify()

    with_mounts(build)
