from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploy.shm import PER_MODEL, check_shared_memory, free_shared_memory
from toolchain.errors import LaunchError


def test_enough_is_fine() -> None:
    check_shared_memory(1)


def test_too_little_is_refused_with_the_docker_option(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    models = stat.f_bavail * stat.f_frsize // PER_MODEL + 1000
    with pytest.raises(LaunchError, match=rf"{models} models take .*\n  fix: .*--shm-size"):
        check_shared_memory(models, directory=tmp_path)


def test_a_machine_without_shared_memory_is_refused(tmp_path: Path) -> None:
    assert free_shared_memory(tmp_path / "none") == 0
    with pytest.raises(LaunchError, match="0 MiB are free"):
        check_shared_memory(1, directory=tmp_path / "none")
