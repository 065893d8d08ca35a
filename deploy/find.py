"""Find a Triton Inference Server on this machine and make it startable.

Four places are looked at, in this order: a path given by the user, `tritonserver` on PATH, NVIDIA's
container layout, and the nvidia-pytriton wheel, which carries the same binary for machines without
containers. The wheel keeps the Python backend's stubs, one per Python version, apart from the backend;
`prepare` brings the right one beside it and checks that the dynamic loader can start both, because a stub
that cannot be loaded leaves tritonserver waiting for ever without a word.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from toolchain.errors import ToolchainError, os_error

CONTAINER_ROOT = Path("/opt/tritonserver")
VARIABLE = "LLMBUILD_TRITONSERVER"
WAYS_TO_GET = (
    "pip install 'llmbuild[triton]', or run inside NVIDIA's nvcr.io/nvidia/tritonserver container, "
    f"or name the binary with --tritonserver PATH or {VARIABLE}"
)


@dataclass(frozen=True)
class Triton:
    """One tritonserver found on this machine.

    Attributes:
        binary: the executable.
        found_by: which of the places it was found in.
        version: the server's version, or the wheel's name and version; None when it is not written anywhere.
        backends: the directory with one directory a backend; None when only the server's default is left.
        wheel: the site-packages directory, when the binary is that of the nvidia-pytriton wheel.
    """

    binary: Path
    found_by: Literal["argument", "variable", "PATH", "container", "wheel"]
    version: str | None
    backends: Path | None
    wheel: Path | None = None


@dataclass(frozen=True)
class Runtime:
    """What a start needs besides the binary: the backend directory, and variables to set or replace."""

    backends: Path | None
    env: Mapping[str, str]


@dataclass(frozen=True)
class HostPython:
    """The Python whose packages the models import.

    Attributes:
        version: major and minor, for example "3.11"; the stub must be of this version.
        libdir: where this Python's own shared library would be.
        bin: the directory with its `python3`; the stub finds the packages through it.
        packages: its site-packages directory.
    """

    version: str
    libdir: Path
    bin: Path
    packages: Path

    @classmethod
    def current(cls) -> HostPython:
        """The Python that runs this."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        libdir = sysconfig.get_config_var("LIBDIR") or f"{sys.base_prefix}/lib"
        packages = Path(sysconfig.get_path("purelib"))
        return cls(version, Path(libdir), Path(sys.executable).parent, packages)

    @property
    def library(self) -> str:
        """File name of the shared library that the stub is linked with."""
        return f"libpython{self.version}.so.1.0"


def find_triton(path: str | os.PathLike[str] | None = None) -> Triton:
    """Find tritonserver: `path`, the variable LLMBUILD_TRITONSERVER, PATH, the container, the wheel.

    A path may name the binary or the directory above `bin/tritonserver`.

    Raises:
        ToolchainError: there is none, or the one that the user named cannot be used.
    """
    if path:
        return _named(Path(path), "argument")
    if named := os.environ.get(VARIABLE):
        return _named(Path(named), "variable")
    if found := shutil.which("tritonserver"):
        return _describe(Path(found).resolve(), "PATH")
    if _executable(binary := CONTAINER_ROOT / "bin" / "tritonserver"):
        return _describe(binary, "container")
    if triton := _in_wheel():
        return triton
    raise ToolchainError("no Triton Inference Server on this machine", fix=WAYS_TO_GET)


def prepare(triton: Triton, *, python: HostPython | None = None, cache: Path | None = None) -> Runtime:
    """Make `triton` startable for the models of `python` (by default the one running).

    A server that is installed needs nothing. For the wheel, a directory of links below `cache` (by default
    `$XDG_CACHE_HOME/llmbuild-triton`) joins the backend with the stub and with the Python library; its name
    is a digest of what it links to, and it appears by a rename, so several processes may do this at once.

    Raises:
        ToolchainError: there is no stub for this Python version, or a shared library is missing.
        StoreError: the cache cannot be written.
    """
    if triton.wheel is None:
        _check_loads(triton.binary, os.environ, HostPython.current())
        return Runtime(triton.backends, {})
    python = python or HostPython.current()
    root = triton.binary.parent.parent
    stubs = root / "python_backend_stubs"
    stub = stubs / python.version / "triton_python_backend_stub"
    if not stub.is_file():
        known = sorted((p.name for p in stubs.iterdir()), key=lambda v: [int(n) for n in v.split(".")])
        raise ToolchainError(
            f"this Triton cannot run models with Python {python.version}",
            where=str(stubs),
            why=f"it has a Python backend stub for each of {', '.join(known)}, and for no other",
            fix="make the virtual environment with one of these, or use a tritonserver of your own",
        )
    links = {f"backends/python/{p.name}": p for p in (root / "backends" / "python").iterdir() if p.is_file()}
    links |= {"backends/python/triton_python_backend_stub": stub}
    own_library = python.libdir / python.library
    if own_library.is_file():
        # The standard library that the stub will import is this Python's, so its own libpython goes before
        # the system's. Linked alone: LIBDIR itself may hold an older libstdc++ or libssl.
        links[f"lib/{python.library}"] = own_library
    linked = _link_tree(links, cache or _default_cache())
    search = [str(linked / "lib"), str(triton.wheel / "nvidia_pytriton.libs")]
    env = {
        "LD_LIBRARY_PATH": _join(search, "LD_LIBRARY_PATH"),
        "PATH": _join([str(python.bin)], "PATH"),
        "PYTHONPATH": _join([str(python.packages)], "PYTHONPATH"),
    }
    _check_loads(triton.binary, {**os.environ, **env}, python)
    _check_loads(linked / "backends/python/triton_python_backend_stub", {**os.environ, **env}, python)
    return Runtime(linked / "backends", env)


def missing_libraries(binary: Path, env: Mapping[str, str]) -> list[str]:
    """What the dynamic loader would not find for `binary` under `env`: library names, or its own words."""
    # This is what ldd does; ldd itself is a bash script that a slim image may lack.
    traced = subprocess.run(
        [binary], env={**env, "LD_TRACE_LOADED_OBJECTS": "1"}, capture_output=True, text=True, check=False
    )
    lines = (traced.stdout + traced.stderr).splitlines()
    return [line.split(" => ")[0].strip() for line in lines if "not found" in line]


def _named(path: Path, found_by: Literal["argument", "variable"]) -> Triton:
    binary = path / "bin" / "tritonserver" if path.is_dir() else path
    if not binary.exists():
        why = "there is no such file"
    elif not _executable(binary):
        why = "it is not an executable file"
    else:
        return _describe(binary.resolve(), found_by)
    raise ToolchainError(
        "cannot use the tritonserver that was named",
        where=str(binary),
        why=why + (f"; it comes from the variable {VARIABLE}" if found_by == "variable" else ""),
        fix=WAYS_TO_GET,
    )


def _in_wheel() -> Triton | None:
    try:
        distribution = metadata.distribution("nvidia-pytriton")
    except metadata.PackageNotFoundError:
        return None
    binary = Path(str(distribution.locate_file("pytriton/tritonserver/bin/tritonserver")))
    return _describe(binary, "wheel") if _executable(binary) else None


def _describe(
    binary: Path, found_by: Literal["argument", "variable", "PATH", "container", "wheel"]
) -> Triton:
    root = binary.parent.parent
    packages = root.parent.parent
    if (root / "python_backend_stubs").is_dir() and (packages / "nvidia_pytriton.libs").is_dir():
        infos = [p.name for p in packages.glob("nvidia_pytriton-*.dist-info")]
        version = f"nvidia-pytriton {infos[0].split('-')[1].removesuffix('.dist')}" if infos else None
        return Triton(binary, found_by, version, root / "backends", wheel=packages)
    written = root / "TRITON_VERSION"
    version = written.read_text().strip() if written.is_file() else None
    candidates = (root / "backends", CONTAINER_ROOT / "backends")
    return Triton(binary, found_by, version, next((d for d in candidates if d.is_dir()), None))


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmbuild-triton"


def _join(first: list[str], variable: str) -> str:
    return ":".join([*first, *filter(None, [os.environ.get(variable)])])


def _link_tree(links: Mapping[str, Path], cache: Path) -> Path:
    """A directory with these links (relative name -> target), made once for all who need the same."""
    stats = {name: (str(target), target.stat()) for name, target in sorted(links.items())}
    facts = "\n".join(f"{name} {to} {s.st_size} {s.st_mtime_ns}" for name, (to, s) in stats.items())
    final = cache / hashlib.sha256(facts.encode()).hexdigest()[:16]
    if all((final / name).is_file() for name in links):
        return final
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="making-") as scratch:
            made = Path(scratch) / "tree"
            for name, target in links.items():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (made / name).symlink_to(target)
            if final.exists() and not all((final / name).is_file() for name in links):
                shutil.rmtree(final)  # somebody deleted a part of it
            try:
                made.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
    except OSError as error:
        raise os_error(error, "prepare Triton's Python backend") from error
    return final


def _check_loads(binary: Path, env: Mapping[str, str], python: HostPython) -> None:
    missing = missing_libraries(binary, env)
    if not missing:
        return
    if python.library in missing:
        fix = (
            f"apt-get install libpython{python.version}, or make the virtual environment with a Python that "
            "was built with --enable-shared"
        )
    else:
        fix = "install the packages that own these libraries, or run inside NVIDIA's container"
    raise ToolchainError(
        "Triton cannot start here: shared libraries are missing",
        where=str(binary),
        why=f"the loader does not find {', '.join(missing)}",
        fix=fix,
    )
