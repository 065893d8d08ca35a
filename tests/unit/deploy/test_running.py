"""Announcements of servers: found while their process lives, and by nobody mistaken afterwards."""

import json
import os
import subprocess
import sys

import pytest

from deploy.running import announced, find_running


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def announcement(temporary):
    (file,) = temporary.glob("llmbuild-*/*")
    return file


def test_found_while_it_lasts(temporary):
    artifact = temporary / "artifact"
    assert find_running(artifact) is None
    with announced(artifact, "127.0.0.1:1", "http://127.0.0.1:2"):
        running = find_running(artifact)
        assert (running.pid, running.grpc, running.http) == (os.getpid(), "127.0.0.1:1", "http://127.0.0.1:2")
        assert find_running(temporary / "other") is None
        assert announcement(temporary).parent.stat().st_mode & 0o777 == 0o700
    assert find_running(artifact) is None
    assert not list(temporary.glob("llmbuild-*/*"))


def test_a_process_that_has_the_number_of_one_that_is_gone(temporary):
    with announced(temporary, "127.0.0.1:1", ""):
        file = announcement(temporary)
        stale = json.loads(file.read_text())
        for changed in ({"started": stale["started"] - 1}, {"pid": 1}, {"pid": 2**22 + 1}):
            file.write_text(json.dumps(stale | changed))
            assert find_running(temporary) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", "\x00", '{"pid": 1, "grpc": "", "http": ""}'])
def test_an_announcement_that_says_nothing(content, temporary):
    with announced(temporary, "127.0.0.1:1", ""):
        announcement(temporary).write_text(content)
        assert find_running(temporary) is None


def test_the_last_to_announce_is_found_and_not_removed_by_the_first(temporary):
    script = (
        "import sys, time, tempfile; tempfile.tempdir = sys.argv[1]; from pathlib import Path\n"
        "from deploy.running import announced\n"
        "with announced(Path(sys.argv[1]), 'other:1', ''): print(flush=True); sys.stdin.read()"
    )
    with announced(temporary, "mine:1", ""):
        other = subprocess.Popen(
            [sys.executable, "-c", script, str(temporary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        other.stdout.readline()
        assert find_running(temporary).grpc == "other:1"
    assert find_running(temporary).pid == other.pid
    other.communicate()
    assert find_running(temporary) is None


def test_a_server_that_cannot_be_announced_runs_all_the_same(temporary, caplog):
    (temporary / f"llmbuild-{os.getuid()}").touch()
    with announced(temporary / "artifact", "127.0.0.1:1", ""):
        assert find_running(temporary / "artifact") is None
    assert "will not find this server" in caplog.text
