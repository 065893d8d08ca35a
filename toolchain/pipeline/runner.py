"""Walks the stages of a build: skips what the store holds, runs the rest, survives every interruption."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from toolchain.errors import BuildError, LlmbuildError, StoreError, UsageError, os_error
from toolchain.pipeline.collect import sweep
from toolchain.pipeline.measure import Meter
from toolchain.pipeline.record import Record, llmbuild_version, now
from toolchain.pipeline.sources import source_digest
from toolchain.pipeline.stage import Stage, StageContext
from toolchain.pipeline.store import Staging, Store, StoredObject
from toolchain.progress import Progress, Silent

_DISK_ERRORS = frozenset(
    getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG", "EIO", "EACCES", "EPERM")
)
_FULL = 1 << 20  # bytes free: less, and a failure without a reason is put down to the disk


@dataclass(frozen=True)
class StageResult:
    """One stage of a build that is finished, now or earlier."""

    stage: Stage
    outcome: Literal["cached", "run"]
    record: Record
    object: StoredObject

    @property
    def path(self) -> Path:
        """The output directory, read-only."""
        return self.object.path


def run_pipeline(
    stages: Sequence[Stage],
    store: Store,
    *,
    until: str | None = None,
    force: Collection[str] = (),
    progress: Progress | None = None,
) -> list[StageResult]:
    """Bring the stages up to date, in order; return one result each.

    A stage whose key has a finished output in the store is not run. The outputs stay held open by `store`
    until it is closed, so publish the artifact before that.

    Args:
        stages: each one's inputs come before it.
        store: an open store.
        until: the last stage to bring up to date; all by default.
        force: stages to run although they have an output. Such a run starts from scratch. If it makes the
            same bytes nothing else changes; if not, its key stands for the new output from then on, later
            stages see another input and run too, and artifacts made before keep the output that they have.
        progress: told what happens.

    Raises:
        UsageError: a stage is named that is not there, or a source does not exist.
        StoreError: the disk is full or read-only, a stored output is damaged.
        LlmbuildError: whatever a stage raises; its scratch is kept for the next try. Or whatever its check
            raises; its output is kept.
        KeyboardInterrupt: on SIGINT or SIGTERM, after the same cleaning up.
    """
    progress = progress or Silent()
    _check(stages, until, force)
    results: dict[str, StageResult] = {}
    with _terminable():
        sweep(store)
        for stage in stages:
            results[stage.name] = _bring_up_to_date(stage, store, results, stage.name in force, progress)
            if stage.check:
                stage.check(results[stage.name].path)
            if stage.name == until:
                break
    return list(results.values())


def _check(stages: Sequence[Stage], until: str | None, force: Collection[str]) -> None:
    names = [stage.name for stage in stages]
    for index, stage in enumerate(stages):
        unknown = set(stage.inputs) - set(names[:index])
        if unknown or set(stage.inputs) & set(stage.sources) or stage.name in names[:index]:
            raise ValueError(f"stage {stage.name}: duplicate name, or inputs that do not come before it")
    for name in [*([until] if until else []), *force]:
        if name not in names:
            raise UsageError(f"there is no stage {name}", fix=f"the stages are {', '.join(names)}")


def _bring_up_to_date(
    stage: Stage, store: Store, done: Mapping[str, StageResult], forced: bool, progress: Progress
) -> StageResult:
    digests = _digests(stage, store, done, progress)
    key = stage.key(digests)

    # Without a lock first: what is finished can be used from a read-only store, and while others build.
    if not forced and (found := store.find(key)):
        return _cached(stage, *found, progress)
    with store.lock(key, lambda who: progress.note(f"{stage.name}: waiting for {who}, which is building it")):
        if not forced and (found := store.find(key)):
            return _cached(stage, *found, progress)
        if forced:
            store.discard(store.work / key)
        inputs = {name: done[name].path for name in stage.inputs}
        inputs |= {name: source.path for name, source in stage.sources.items()}
        for name, own in stage.intermediates.items():
            inputs[name] = _bring_up_to_date(own, store, done, forced=False, progress=progress).path
        with store.staging(key) as staging:
            return _run(stage, store, staging, inputs, digests, progress)


def _digests(
    stage: Stage, store: Store, done: Mapping[str, StageResult], progress: Progress
) -> dict[str, str]:
    """What `Stage.key` wants."""
    digests = {name: done[name].object.digest for name in stage.inputs}
    digests |= {name: source_digest(source, store, progress) for name, source in stage.sources.items()}
    for name, own in stage.intermediates.items():
        digests[name] = own.key(_digests(own, store, done, progress))
    return digests


def _cached(stage: Stage, record: Record, stored: StoredObject, progress: Progress) -> StageResult:
    progress.note(f"{stage.name}: cached ({record.key[:12]})")
    return StageResult(stage, "cached", record, stored)


def _run(
    stage: Stage,
    store: Store,
    staging: Staging,
    inputs: Mapping[str, Path],
    digests: Mapping[str, str],
    progress: Progress,
) -> StageResult:
    resumed = any(staging.work_dir.iterdir())
    progress.note(f"{stage.name}: {'resuming' if resumed else 'running'} ({staging.key[:12]})")
    context = StageContext(stage.config, inputs, staging.out_dir, staging.work_dir, progress)
    meter = Meter()
    try:
        stage.run(context)
    except Exception as error:
        raise _explained(error, stage, store) from error
    seconds, peak_memory = meter.read()
    _check_sources(stage, store, digests)
    listing = store.seal(staging, progress)
    record = Record(
        key=staging.key,
        stage=stage.name,
        version=stage.version,
        inputs=dict(digests),
        config=dict(stage.config),
        tools=dict(stage.tools),
        arch=stage.arch,
        object=listing.digest,
        seconds=round(seconds, 3),
        peak_memory=peak_memory,
        facts=context.facts,
        created=now(),
        llmbuild=llmbuild_version(),
    )
    stored = store.commit(staging, listing, record)
    progress.note(
        f"{stage.name}: done in {seconds:.1f} s, {peak_memory / 2**20:.0f} MiB of memory at the peak"
    )
    return StageResult(stage, "run", record, stored)


def _check_sources(stage: Stage, store: Store, digests: Mapping[str, str]) -> None:
    for name, source in stage.sources.items():
        if source_digest(source, store, Silent()) != digests[name]:
            raise BuildError(
                f"a source of stage {stage.name} changed while it was being read",
                where=str(source.path),
                fix="build again once nothing writes there any more",
            )


def _explained(error: Exception, stage: Stage, store: Store) -> Exception:
    """The error to raise for what a stage raised: a full disk has many faces."""
    if isinstance(error, LlmbuildError):
        if isinstance(error, StoreError) and error.where is None:
            error.where = str(store.root)  # a failing write() names no file
        return error
    doing = f"run stage {stage.name}"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        error.filename = error.filename or str(store.root)
        return os_error(error, doing)
    # Native writers (safetensors, torch, OpenVINO) raise classes of their own, some without the reason.
    text = str(error)
    if os.strerror(errno.ENOSPC) in text or shutil.disk_usage(store.root).free < _FULL:
        full = os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(store.root)), doing)
        full.why = text or None
        return full
    return error


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C does, so that it cleans up. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
