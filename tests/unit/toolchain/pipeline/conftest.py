"""Real processes, real file systems, and a small pipeline to run on them."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from toolchain.pipeline.artifact import Artifact, publish
from toolchain.pipeline.runner import StageResult, run_pipeline
from toolchain.pipeline.stage import Source, Stage, StageContext
from toolchain.pipeline.store import Store


class Child:
    """A forked process that runs a function; what that returns or raises comes back through a pipe."""

    def __init__(self, work: Callable[[], Any]) -> None:
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            outcome: tuple[str, Any] = ("died", None)
            try:
                outcome = ("returned", work())
            except BaseException as error:
                error.__traceback__ = None
                outcome = ("raised", (type(error), str(error), traceback.format_exc()))
            finally:
                with os.fdopen(writer, "wb") as pipe:
                    pickle.dump(outcome, pipe)
                os._exit(0)
        os.close(writer)
        self._pipe = os.fdopen(reader, "rb")
        self._status: int | None = None

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> tuple[str, Any]:
        """("returned", value), ("raised", (class, text, traceback)) or ("killed", signal)."""
        answer = self._pipe.read()
        self._pipe.close()
        _, status = os.waitpid(self.pid, 0)
        self._status = status
        return ("killed", os.WTERMSIG(status)) if os.WIFSIGNALED(status) else pickle.loads(answer)

    def result(self) -> Any:
        how, value = self.wait()
        assert how == "returned", value
        return value

    def end(self) -> None:
        if self._status is None:
            self.signal(signal.SIGKILL)
            self.wait()


@pytest.fixture
def fork() -> Iterator[Callable[[Callable[[], Any]], Child]]:
    children: list[Child] = []

    def start(work: Callable[[], Any]) -> Child:
        children.append(Child(work))
        return children[-1]

    yield start
    for child in children:
        child.end()


class Mounts:
    """tmpfs mounts in a mount namespace of the calling process, which needs no privilege on most systems."""

    read_only, remount = 1, 32

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        new_mounts, new_user, private, recursive = 0x00020000, 0x10000000, 1 << 18, 16384
        uid, gid = os.getuid(), os.getgid()
        self._call("unshare", new_mounts | new_user)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
        self._call("mount", b"none", b"/", None, private | recursive, None)

    def tmpfs(self, path: Path, options: str, flags: int = 0) -> None:
        """Mount, or with the flag `remount` change, a tmpfs with options such as size=64k."""
        self._call("mount", b"tmpfs", os.fsencode(path), b"tmpfs", flags, options.encode())

    def unmount(self, path: Path) -> None:
        self._call("umount", os.fsencode(path))

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


@pytest.fixture
def with_mounts(fork: Callable[[Callable[[], Any]], Child]) -> Callable[[Callable[[Mounts], Any]], Any]:
    """Runs a function in a process that can mount; skips where the system does not allow that."""
    how, _ = fork(lambda: Mounts() and None).wait()
    if how != "returned":
        pytest.skip("user namespaces are not available here")
    return lambda work: fork(lambda: work(Mounts())).result()


@dataclass
class Toy:
    """Two stages: `parts` copies a text part by part, resumably; `joined` puts the parts together."""

    source: Path
    log: Path
    parts: int = 3
    on_part: Callable[[int], None] = field(default=lambda _: None)

    def stages(self) -> list[Stage]:
        return [
            Stage("parts", 1, self._parts, sources={"text": Source(self.source)}, config={"n": self.parts}),
            Stage("joined", 1, self._joined, inputs=("parts",)),
        ]

    def build(self, store: Path, artifact: Path, **options: Any) -> list[StageResult]:
        with Store.open(store) as opened:
            results = run_pipeline(self.stages(), opened, **options)
            publish(artifact, results, opened, recipe="name: toy\n")
        return results

    def done(self) -> list[str]:
        """What was done by all runs so far."""
        return self.log.read_text().split() if self.log.exists() else []

    def _say(self, what: str) -> None:
        with self.log.open("a") as log:
            log.write(f"{what}\n")

    def _parts(self, context: StageContext) -> None:
        text = context.inputs["text"].read_text()
        for index in range(context.config["n"]):
            finished = context.work_dir / f"{index}.txt"
            if not finished.exists():
                self.on_part(index)
                temporary = context.work_dir / "unfinished"
                temporary.write_text(f"{index}: {text}")
                temporary.rename(finished)
                self._say(f"part{index}")
            (context.out_dir / "sub").mkdir(exist_ok=True)
            os.link(finished, context.out_dir / "sub" / finished.name)
        (context.out_dir / "empty").mkdir()

    def _joined(self, context: StageContext) -> None:
        self._say("joined")
        texts = [path.read_text() for path in sorted((context.inputs["parts"] / "sub").iterdir())]
        (context.out_dir / "all.txt").write_text("".join(texts))
        context.facts["parts"] = len(texts)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    source = tmp_path / "source.txt"
    source.write_text("a text\n" * 2000)
    return Toy(source, tmp_path / "log")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def assert_sound() -> Callable[[Path, Path], None]:
    """Asserts that whatever is visible of a store and an artifact is complete."""

    def check(root: Path, artifact: Path) -> None:
        with Store.open(root) as opened:
            assert opened.verify() == []
            for record in opened.list_records():
                assert opened.find(record.key) is not None
        if artifact.exists():
            Artifact.open(artifact).verify()

    return check


@pytest.fixture
def assert_clean() -> Callable[[Path], None]:
    """Asserts that nothing temporary is left in a store."""

    def check(root: Path) -> None:
        for name in ("tmp", "work", "locks"):
            assert [path.name for path in (root / name).iterdir()] == []

    return check
