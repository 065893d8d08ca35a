"""Kills at every instant, full disks, read-only disks, two builds at once: all of it for real."""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from toolchain.errors import StoreError
from toolchain.pipeline.artifact import Artifact
from toolchain.pipeline.runner import run_pipeline
from toolchain.pipeline.stage import Stage
from toolchain.pipeline.store import Store

_ON_DISK = ("open", "os.", "shutil.", "fcntl.", "pathlib.")


def _kill_at(step: int, directory: Path) -> None:
    """Let this process die by SIGKILL before its `step`th operation on files below `directory`."""
    left = step
    below = str(directory)

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        on_disk = event.startswith(_ON_DISK) and any(str(each).startswith(below) for each in arguments)
        if on_disk or event in ("fcntl.flock", "os.chmod", "os.truncate"):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


@pytest.mark.slow
def test_a_kill_at_any_instant_loses_nothing_and_leaves_nothing(
    tmp_path, toy, fork, assert_sound, assert_clean
):
    toy.parts = 2
    toy.build(tmp_path / "calm", tmp_path / "expected" / "toy")
    expected = Artifact.open(tmp_path / "expected" / "toy").manifest
    step, survived = 0, False
    while not survived:
        step += 1
        place = tmp_path / str(step)
        store, artifact = place / "store", place / "artifacts" / "toy"

        def build(step=step, place=place, store=store, artifact=artifact):
            _kill_at(step, place)
            toy.build(store, artifact)

        place.mkdir()
        toy.log.write_text("")
        how, value = fork(build).wait()
        survived = how == "returned"
        assert survived or (how, value) == ("killed", signal.SIGKILL)
        assert_sound(store, artifact)
        finished = {record.stage for record in Store.open(store).list_records()}

        results = toy.build(store, artifact)

        assert {r.stage.name for r in results if r.outcome == "cached"} == finished
        assert [toy.done().count(f"part{index}") for index in range(2)] in ([1, 1], [2, 1], [1, 2])
        assert_clean(store)
        assert [path.name for path in artifact.parent.iterdir()] == ["toy"]
        assert Artifact.open(artifact).manifest.says_the_same(expected)
        Artifact.open(artifact).verify()
    assert step > 100  # the hook did see the operations


def test_a_rebuild_that_is_killed_keeps_the_artifact_that_was_there(tmp_path, toy, fork, assert_sound):
    store, artifact = tmp_path / "store", tmp_path / "artifacts" / "toy"
    toy.build(store, artifact)
    for step in range(1, 400, 20):
        toy.source.write_text(f"another text {step}")

        def build(step=step):
            _kill_at(step, tmp_path)
            toy.build(store, artifact)

        fork(build).wait()
        assert artifact.exists()
        assert_sound(store, artifact)


def test_two_builds_at_once_do_the_work_once(tmp_path, toy, fork):
    toy.on_part = lambda _: os.sched_yield()
    children = [
        fork(lambda n=n: [r.record.key for r in toy.build(tmp_path / "store", tmp_path / f"artifact{n}")])
        for n in range(4)
    ]
    keys = [child.result() for child in children]
    assert all(each == keys[0] for each in keys)
    assert sorted(toy.done()) == ["joined", "part0", "part1", "part2"]


def test_who_waits_says_for_whom_and_takes_over_when_the_other_is_killed(tmp_path, toy, fork, assert_clean):
    started, go_on = os.pipe(), os.pipe()

    def hang(index: int) -> None:
        if index == 1:
            os.write(started[1], b"!")
            os.read(go_on[0], 1)

    notes = tmp_path / "notes"

    class Notes:
        def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None: ...
        def advance(self, amount: int = 1) -> None: ...
        def note(self, text: str) -> None:
            with notes.open("a") as file:
                file.write(f"{text}\n")
            if "waiting" in text:
                os.write(started[1], b"?")

    toy.on_part = hang
    first = fork(lambda: toy.build(tmp_path / "store", tmp_path / "toy"))
    assert os.read(started[0], 1) == b"!"
    toy.on_part = lambda _: None
    second = fork(lambda: toy.build(tmp_path / "store", tmp_path / "toy", progress=Notes()) and None)
    assert os.read(started[0], 1) == b"?"
    first.signal(signal.SIGKILL)
    assert first.wait() == ("killed", signal.SIGKILL)
    second.result()
    assert f"parts: waiting for process {first.pid} on " in notes.read_text()
    assert "parts: resuming" in notes.read_text()
    assert toy.done().count("part0") == 1
    assert_clean(tmp_path / "store")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_cleans_up_and_keeps_the_scratch(tmp_path, toy, fork, number):
    started = os.pipe()

    def hang(index: int) -> None:
        if index == 1:
            os.write(started[1], b"!")
            signal.pause()

    toy.on_part = hang
    child = fork(lambda: toy.build(tmp_path / "store", tmp_path / "toy"))
    os.read(started[0], 1)
    child.signal(number)
    how, (kind, _, _) = child.wait()
    assert (how, kind) == ("raised", KeyboardInterrupt)
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
    assert list((tmp_path / "store" / "locks").iterdir()) == []
    assert [path.name for path in (tmp_path / "store" / "work").glob("*/*")] == ["0.txt"]
    toy.on_part = lambda _: None
    toy.build(tmp_path / "store", tmp_path / "toy")
    assert toy.done().count("part0") == 1


@pytest.mark.parametrize(
    "limits",
    [[f"size={4 * pages}k" for pages in range(1, 40)], [f"nr_inodes={count}" for count in range(2, 50)]],
    ids=["bytes", "inodes"],
)
def test_a_disk_that_fills_up_at_any_point(tmp_path, toy, with_mounts, assert_sound, assert_clean, limits):
    disk = tmp_path / "disk"
    disk.mkdir()

    def fill(mounts) -> list[StoreError | None]:
        outcomes = []
        for limit in limits:
            mounts.tmpfs(disk, limit)
            try:
                toy.build(disk / "store", disk / "toy")
                outcomes.append(None)
            except StoreError as error:
                outcomes.append(error)
            mounts.tmpfs(disk, "size=0,nr_inodes=0", mounts.remount)  # as large as can be
            assert_sound(disk / "store", disk / "toy")
            toy.build(disk / "store", disk / "toy")
            assert_clean(disk / "store")
            Artifact.open(disk / "toy").verify()
            mounts.unmount(disk)
        return outcomes

    *outcomes, last = with_mounts(fill)
    assert last is None
    full = [error for error in outcomes if error is not None]
    assert len(full) > 10
    for error in full:
        assert "No space left on device" in error.what
        assert str(disk) in error.where
        assert "llmbuild store gc" in error.fix


def test_a_file_size_limit_is_an_error_of_the_store(tmp_path, toy, fork):
    def build() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        toy.build(tmp_path / "store", tmp_path / "toy")

    how, (kind, text, _) = fork(build).wait()
    assert (how, kind) == ("raised", StoreError)
    assert "cannot run stage parts: File too large" in text


def test_a_native_error_that_hides_a_full_disk_is_told_as_such(tmp_path, with_mounts):
    def save(context) -> None:
        # What safetensors and torch do: their own class, with or without the system's words.
        raise RuntimeError("unexpected pos 64 vs 0")

    def build(mounts) -> str:
        mounts.tmpfs(tmp_path, "size=64k")
        with Store.open(tmp_path / "store") as store, pytest.raises(StoreError) as caught:
            run_pipeline([Stage("save", 1, save)], store)
        return str(caught.value)

    text = with_mounts(build)
    assert "cannot run stage save: No space left on device" in text
    assert "why: unexpected pos 64 vs 0" in text


def test_a_read_only_store_serves_what_it_has_and_says_so_otherwise(tmp_path, toy, with_mounts):
    disk = tmp_path / "disk"
    disk.mkdir()

    def build(mounts) -> tuple[list[str], str]:
        mounts.tmpfs(disk, "size=1m")
        toy.build(disk / "store", tmp_path / "first")
        mounts.tmpfs(disk, "size=1m", mounts.remount | mounts.read_only)
        outcomes = [result.outcome for result in toy.build(disk / "store", tmp_path / "second")]
        Artifact.open(tmp_path / "second").verify()
        toy.source.write_text("another text")
        with pytest.raises(StoreError) as caught:
            toy.build(disk / "store", tmp_path / "second")
        return outcomes, str(caught.value)

    outcomes, text = with_mounts(build)
    assert outcomes == ["cached", "cached"]
    assert "Read-only file system" in text
    assert "fix: point LLMBUILD_STORE at a writable directory" in text


def test_a_store_without_permission(tmp_path, toy, fork):
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(0o500)

    def build() -> None:
        if os.getuid() == 0:
            nobody = 65534
            os.setgid(nobody)
            os.setuid(nobody)
        toy.build(tmp_path / "store", tmp_path / "toy")

    how, (kind, text, _) = fork(build).wait()
    assert (how, kind) == ("raised", StoreError)
    assert "Permission denied" in text
    assert "fix: check the permissions" in text


def test_a_store_path_that_is_a_file(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="the store is not a directory"):
        Store.open(tmp_path / "store")


def test_a_store_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot open the store: Not a directory"):
        Store.open(tmp_path / "file" / "store")
