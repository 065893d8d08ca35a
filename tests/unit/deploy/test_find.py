"""Finding and preparing Triton, with the wheel of this environment where it is installed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from deploy.find import CONTAINER_ROOT, HostPython, Runtime, Triton, find_triton, missing_libraries, prepare
from toolchain.errors import StoreError, ToolchainError

STUB = "python/triton_python_backend_stub"


@pytest.fixture(autouse=True)
def _no_triton_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLMBUILD_TRITONSERVER", raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    if CONTAINER_ROOT.exists():
        pytest.skip("this machine has NVIDIA's container layout")


@pytest.fixture
def wheel() -> Triton:
    try:
        return find_triton()
    except ToolchainError:
        pytest.skip("nvidia-pytriton is not installed")


def _script(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_finds_the_wheel_without_importing_it(wheel: Triton) -> None:
    assert wheel.found_by == "wheel"
    assert wheel.version is not None
    assert wheel.version.startswith("nvidia-pytriton 0.")
    assert wheel.backends is not None
    assert (wheel.backends / "python" / "libtriton_python.so").is_file()
    code = (
        "import sys; from deploy.find import find_triton; find_triton(); assert 'pytriton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_prefers_path_to_the_wheel_and_what_is_named_to_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = _script(tmp_path / "on-path" / "bin" / "tritonserver")
    (tmp_path / "on-path" / "backends").mkdir()
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_triton() == Triton(on_path, "PATH", None, tmp_path / "on-path" / "backends")

    root = tmp_path / "named"
    named = _script(root / "bin" / "tritonserver")
    (root / "TRITON_VERSION").write_text("2.60.0\n")
    monkeypatch.setenv("LLMBUILD_TRITONSERVER", str(named))
    assert find_triton() == Triton(named, "variable", "2.60.0", None)
    assert find_triton(root) == Triton(named, "argument", "2.60.0", None)
    assert find_triton(on_path).found_by == "argument"


def test_knows_the_wheel_by_its_layout_when_it_is_named(wheel: Triton) -> None:
    assert find_triton(wheel.binary) == dataclasses.replace(wheel, found_by="argument")


def test_refuses_what_is_named_and_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ToolchainError, match=r"gone: cannot use .*\n  why: there is no such file\n  fix: pip"
    ):
        find_triton(tmp_path / "gone")
    (tmp_path / "text").touch()
    with pytest.raises(ToolchainError, match="why: it is not an executable file\n"):
        find_triton(tmp_path / "text")
    monkeypatch.setenv("LLMBUILD_TRITONSERVER", str(tmp_path))
    with pytest.raises(
        ToolchainError, match=r"bin/tritonserver: .*\n.*from the variable LLMBUILD_TRITONSERVER"
    ):
        find_triton()


def test_tells_how_to_get_triton_where_there_is_none(tmp_path: Path) -> None:
    # An interpreter without site-packages is a machine without the wheel.
    code = "from deploy.find import find_triton; find_triton()"
    environment = {"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "ToolchainError: no Triton Inference Server on this machine" in answer.stderr
    assert "pip install 'llmbuild[triton]'" in answer.stderr
    assert "--tritonserver PATH" in answer.stderr


def test_an_installed_server_needs_no_preparation(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    shutil.copy("/bin/true", binary)  # something that the loader can start
    (tmp_path / "backends").mkdir()
    runtime = prepare(find_triton(tmp_path), cache=tmp_path / "cache")
    assert runtime == Runtime(tmp_path / "backends", {})
    assert not (tmp_path / "cache").exists()


def test_brings_the_stub_beside_the_backend(wheel: Triton, tmp_path: Path) -> None:
    runtime = prepare(wheel, cache=tmp_path)
    assert runtime.backends is not None
    assert (runtime.backends / STUB).is_file()
    assert (runtime.backends / "python" / "libtriton_python.so").is_file()
    assert (runtime.backends / "python" / "triton_python_backend_utils.py").is_file()
    assert missing_libraries(runtime.backends / STUB, {**os.environ, **runtime.env}) == []
    assert runtime.env["PATH"].split(":")[0] == str(Path(sys.executable).parent)


def test_runs_models_on_the_library_of_the_running_python(wheel: Triton, tmp_path: Path) -> None:
    python = HostPython.current()
    runtime = prepare(wheel, cache=tmp_path)
    linked = Path(runtime.env["LD_LIBRARY_PATH"].split(":")[0]) / python.library
    assert linked.exists() == (python.libdir / python.library).exists()


def test_keeps_the_users_search_paths(wheel: Triton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/user")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/lib/of/the/user")
    env = prepare(wheel, cache=tmp_path).env
    assert env["PYTHONPATH"].endswith(":/of/the/user")
    assert env["LD_LIBRARY_PATH"].endswith(":/lib/of/the/user")
    assert env["PATH"].endswith(":/usr/bin:/bin")


def test_many_may_prepare_at_once_and_again(wheel: Triton, tmp_path: Path) -> None:
    found: set[Path | None] = set()
    threads = [
        threading.Thread(target=lambda: found.add(prepare(wheel, cache=tmp_path).backends)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (backends,) = found
    assert backends is not None
    assert [p.name for p in tmp_path.iterdir()] == [backends.parent.name]

    (backends / STUB).unlink()
    assert prepare(wheel, cache=tmp_path).backends == backends
    assert (backends / STUB).is_file()


def test_lists_the_pythons_that_have_a_stub(wheel: Triton, tmp_path: Path) -> None:
    python = dataclasses.replace(HostPython.current(), version="3.7")
    with pytest.raises(
        ToolchainError, match=r"models with Python 3\.7\n  why: .* 3\.8, 3\.9, 3\.10, 3\.11, "
    ):
        prepare(wheel, python=python, cache=tmp_path)


def test_a_missing_libpython_is_an_error_and_not_a_hang(wheel: Triton, tmp_path: Path) -> None:
    stubs = wheel.binary.parent.parent / "python_backend_stubs"
    for version in sorted(p.name for p in stubs.iterdir()):
        python = HostPython(version, tmp_path, Path(sys.executable).parent, tmp_path)
        if python.library in missing_libraries(stubs / version / Path(STUB).name, os.environ):
            break
    else:
        pytest.skip("this machine has the library of every Python")
    pattern = rf"the loader does not find {python.library}\n  fix: apt-get install libpython{version}"
    with pytest.raises(ToolchainError, match=pattern):
        prepare(wheel, python=python, cache=tmp_path)


def test_a_cache_that_is_a_file_is_an_error(wheel: Triton, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot prepare Triton's Python backend: Not a directory"):
        prepare(wheel, cache=tmp_path / "file" / "cache")
