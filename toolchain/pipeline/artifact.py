"""Artifacts: what a build leaves for its user, published in one step.

    artifacts/NAME/
        recipe.yaml     the resolved recipe
        manifest.json   see toolchain.pipeline.manifest
        report.html     figures and charts for people
        <stage>         a link to each stage's output in the store

The links are absolute, so that an artifact may be moved; `cp -rL artifacts/NAME elsewhere` makes a copy that
needs no store. The store remembers where artifacts were published and keeps what they link to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import LlmbuildError, StoreError, UsageError
from toolchain.pipeline import locks
from toolchain.pipeline.collect import register_root
from toolchain.pipeline.files import (
    FileEntry,
    Listing,
    exchange,
    fsync_dir,
    remove_tree,
    storing,
    write_durable,
)
from toolchain.pipeline.manifest import Manifest, StageEntry
from toolchain.pipeline.record import llmbuild_version, now
from toolchain.pipeline.runner import StageResult
from toolchain.pipeline.store import Store
from toolchain.progress import Progress

_RECIPE = "recipe.yaml"
_MANIFEST = "manifest.json"
_REPORT = "report.html"


@dataclass(frozen=True)
class Artifact:
    """An artifact as it was when it was opened: a rebuild does not change what `dir` and `facts` return."""

    path: Path
    manifest: Manifest
    outputs: Mapping[str, Path]  # by stage

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Open a published artifact or a portable copy. Sizes are checked, bytes are not (`verify` does).

        Raises:
            UsageError: there is no artifact at `path`, or a newer llmbuild made it.
            StoreError: what it links to is gone or damaged.
        """
        with storing("read the artifact", path):
            artifact = cls._read(path.resolve())
            for stage, output in artifact.outputs.items():
                if not output.is_dir():
                    raise StoreError(
                        f"the output of stage {stage} is gone from the store",
                        where=str(output),
                        why=f"it was collected or removed; {path} only links to it",
                        fix=f"llmbuild build {path / _RECIPE}",
                    )
            for root, listing in artifact._listings():
                if wrong := listing.first_wrong_size(root):
                    raise artifact._damaged([wrong])
        return artifact

    @classmethod
    def _read(cls, path: Path) -> Artifact:
        """Read manifest and links through one descriptor, so that both are of the same version."""
        while True:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError) as error:
                raise _not_an_artifact(path) from error
            try:
                with open(_MANIFEST, "rb", opener=functools.partial(os.open, dir_fd=fd)) as file:
                    manifest = Manifest.from_bytes(file.read(), path / _MANIFEST)
                return cls(path, manifest, {name: _output(path, name, fd) for name in manifest.stages})
            except FileNotFoundError as error:
                if locks.leads_to(path, fd):
                    raise _not_an_artifact(path) from error
                # A rebuild has replaced it meanwhile: read the new one.
            finally:
                os.close(fd)

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / _RECIPE

    @property
    def report(self) -> Path | None:
        """The report for people; None where the artifact has none."""
        return self.path / _REPORT if _REPORT in self.manifest.files else None

    def dir(self, stage: str) -> Path:
        """The directory with a stage's output: in the store, or in a portable copy.

        Raises:
            UsageError: the artifact has no such stage, e.g. because the build stopped before it.
        """
        if stage not in self.outputs:
            raise UsageError(
                f"the artifact has no output of stage {stage}",
                where=str(self.path),
                why=f"it holds {', '.join(self.outputs) or 'none'}",
                fix=f"llmbuild build {self.recipe}",
            )
        return self.outputs[stage]

    def facts(self, stage: str) -> Mapping[str, Any]:
        """What a stage said about its output; empty if the artifact has no such stage."""
        entry = self.manifest.stages.get(stage)
        return entry.record.facts if entry else {}

    def verify(self, progress: Progress | None = None) -> None:
        """Read every byte. Raises StoreError that names every damaged file."""
        with storing("read the artifact", self.path):
            wrong = [one for root, listing in self._listings() for one in listing.changed(root, progress)]
        if wrong:
            raise self._damaged(wrong)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep what it links to from being collected, even if a rebuild replaces the artifact meanwhile."""
        with contextlib.ExitStack() as held:
            for output in self.outputs.values():
                with storing("hold the artifact", output):
                    fd = locks.share(output.parent / "files.json")
                if fd is not None:  # in a portable copy there is nothing to hold
                    held.callback(os.close, fd)
            yield

    def _listings(self) -> Iterator[tuple[Path, Listing]]:
        """Each directory of the artifact, and the files that belong there."""
        roots: dict[Path, dict[str, FileEntry]] = {}
        for name, entry in self.manifest.files.items():
            stage, _, rest = name.partition("/")
            root, inner = (self.outputs[stage], rest) if stage in self.outputs else (self.path, name)
            roots.setdefault(root, {})[inner] = entry
        yield from ((root, Listing(files)) for root, files in roots.items())

    def _damaged(self, wrong: Sequence[tuple[Path, str]]) -> StoreError:
        stage = next((s for s, root in self.outputs.items() if wrong[0][0].is_relative_to(root)), None)
        return StoreError(
            f"{len(wrong)} of the artifact's files are not what was published",
            where=str(wrong[0][0]),
            why="; ".join(f"{path.name}: {why}" for path, why in wrong[:5]),
            fix=f"llmbuild build {self.recipe}{f' --force {stage}' if stage else ''}",
        )


def require_replaceable(path: Path) -> None:
    """Make sure that `path` is free, or holds nothing but what `publish` put there.

    Raises:
        UsageError: something else is there, which publishing would destroy.
    """
    ours = {_RECIPE, _MANIFEST, _REPORT}
    with storing("read the artifact", path):
        if path.is_dir() and not path.is_symlink():
            foreign = [p.name for p in sorted(path.iterdir()) if p.name not in ours and not p.is_symlink()]
        else:
            foreign = [path.name] if path.is_symlink() or path.exists() else []
    if foreign:
        raise UsageError(
            "an artifact cannot be published here: something else is in its place",
            where=str(path),
            why=f"a build replaces only what a build has made, which {foreign[0]} is not",
            fix="move it away, or give the recipe another name",
        )


def publish(
    path: Path,
    results: Sequence[StageResult],
    store: Store,
    *,
    recipe: str,
    report: str | None = None,
    gates: Mapping[str, Any] | None = None,
) -> Artifact:
    """Make the results of a build the artifact at `path`, in one step that readers cannot see half of.

    Nothing is written if what is there says the same already; its manifest then keeps telling of the build
    that made it. `store` must be the one of the build, still open.

    Args:
        path: of the artifact, e.g. artifacts/demo-int4.
        results: what `run_pipeline` returned.
        store: holds the outputs.
        recipe: the resolved recipe, YAML.
        report: the report for people, HTML.
        gates: the result of each gate, JSON.

    Raises:
        UsageError: something is at `path` that no build made (`require_replaceable` tells beforehand).
        StoreError: the disk is full or read-only.
    """
    own = {_RECIPE: recipe.encode()} | ({_REPORT: report.encode()} if report is not None else {})
    manifest = Manifest(
        name=path.name,
        llmbuild=llmbuild_version(),
        created=now(),
        recipe_sha256=hashlib.sha256(own[_RECIPE]).hexdigest(),
        stages={r.stage.name: StageEntry(r.outcome, r.record) for r in results},
        files=_files(results, own),
        gates=dict(gates or {}),
    )
    with storing("publish the artifact", path), contextlib.ExitStack() as stack:
        path.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locks.exclusive(path.parent / f".{path.name}.lock", lambda _: None))
        _remove_leftovers(path)
        require_replaceable(path)
        register_root(store, path)
        existing = _open_if_sound(path)
        if existing and existing.manifest.says_the_same(manifest):
            return existing
        version = path.parent / f".{path.name}.{secrets.token_hex(8)}"
        stack.callback(remove_tree, version)  # by then the version that was replaced, if any
        version.mkdir()
        for name, content in own.items():
            write_durable(version / name, content)
        write_durable(version / _MANIFEST, manifest.to_bytes())
        for result in results:
            (version / result.stage.name).symlink_to(result.path)
        fsync_dir(version)
        if path.exists():
            exchange(version, path)
        else:
            version.rename(path)
        fsync_dir(path.parent)
    return Artifact.open(path)


def _files(results: Sequence[StageResult], own: Mapping[str, bytes]) -> dict[str, FileEntry]:
    files = {
        name: FileEntry(hashlib.sha256(content).hexdigest(), len(content)) for name, content in own.items()
    }
    for result in results:
        for name, entry in result.object.listing.files.items():
            files[f"{result.stage.name}/{name}"] = entry
    return files


def _open_if_sound(path: Path) -> Artifact | None:
    try:
        return Artifact.open(path)
    except LlmbuildError:
        return None


def _remove_leftovers(path: Path) -> None:
    """Remove versions that a crash left unpublished. For the holder of the artifact's lock."""
    version = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}(\.old)?")
    for leftover in path.parent.iterdir():
        if version.fullmatch(leftover.name):
            remove_tree(leftover)


def _output(path: Path, stage: str, fd: int) -> Path:
    """Where a stage's output is: what the link says, or a directory of a portable copy."""
    try:
        return Path(os.readlink(stage, dir_fd=fd))
    except FileNotFoundError:
        raise
    except OSError:  # not a link
        return path / stage


def _not_an_artifact(path: Path) -> UsageError:
    return UsageError(
        f"there is no {'artifact' if path.is_dir() else 'such directory'} here",
        where=str(path),
        why=f"an artifact is a directory with a {_MANIFEST}",
        fix="llmbuild build RECIPE makes one; `ls artifacts` shows those that are there",
    )
