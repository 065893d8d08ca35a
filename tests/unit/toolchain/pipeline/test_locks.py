import os
import signal

from toolchain.pipeline import locks


def _never(who):
    raise AssertionError(f"waited for {who}")


def test_a_lock_file_is_gone_after_use(tmp_path):
    with locks.exclusive(tmp_path / "lock", _never):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        with locks.try_exclusive(tmp_path / "lock") as held:
            assert not held
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path, fork):
    ready = os.pipe()

    def hold():
        with locks.exclusive(tmp_path / "lock", _never):
            os.write(ready[1], b"!")
            signal.pause()

    child = fork(hold)
    os.read(ready[0], 1)
    with locks.try_exclusive(tmp_path / "lock") as held:
        assert not held
    child.end()
    assert (tmp_path / "lock").exists()
    with locks.exclusive(tmp_path / "lock", _never):
        pass
    assert list(tmp_path.iterdir()) == []


def test_only_one_at_a_time_although_the_file_comes_and_goes(tmp_path, fork):
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count():
        for _ in range(200):
            with locks.exclusive(tmp_path / "lock", lambda _: None):
                counter.write_text(str(int(counter.read_text()) + 1))

    for child in [fork(count) for _ in range(4)]:
        child.result()
    assert counter.read_text() == "800"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_shared_lock_goes_with_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    fd = locks.share(tmp_path / "file")
    assert fd is not None
    (tmp_path / "file").rename(tmp_path / "moved")
    assert locks.seize(tmp_path / "moved") is None
    os.close(fd)
    seized = locks.seize(tmp_path / "moved")
    assert seized is not None
    os.close(seized)


def test_a_file_that_is_not_there_cannot_be_locked(tmp_path):
    assert locks.share(tmp_path / "missing" / "file") is None
    assert locks.seize(tmp_path / "missing") is None
