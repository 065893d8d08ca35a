"""`llmbuild store`: look at and clean the content-addressed store."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from toolchain.cli.common import JsonOption, emit, finite, table, verb

app = typer.Typer(help="Look at and clean the store of stage outputs.", no_args_is_help=True)


@app.command("list")
@verb
def list_(json: JsonOption = False) -> None:
    """List the stored outputs and the artifacts that use them.

    Example: llmbuild store list
    """
    from toolchain.pipeline.collect import referenced
    from toolchain.pipeline.store import Store
    from toolchain.plan.memory import human_bytes

    with Store.open() as store:
        users = referenced(store)
        records: list[dict[str, Any]] = [
            {
                "stage": record.stage,
                "key": record.key,
                "digest": record.object,
                "bytes": sum(entry.size for entry in stored.listing.files.values()),
                "created": record.created,
                "artifacts": [str(path) for path in users.get(record.object, [])],
            }
            for record in store.list_records()
            if (stored := store.get(record.object))
        ]
    if json:
        emit(records)
        return
    table(
        ["stage", "sha256", ">size", "created", "used by"],
        [
            [r["stage"], r["digest"][:12], human_bytes(r["bytes"]), r["created"], ", ".join(r["artifacts"])]
            for r in records
        ],
    )


@app.command()
@verb
def size(json: JsonOption = False) -> None:
    """Say how much space the store takes.

    Example: llmbuild store size
    """
    from toolchain.pipeline.collect import usage
    from toolchain.pipeline.store import Store
    from toolchain.plan.memory import human_bytes

    with Store.open() as store:
        used = usage(store)
    if json:
        emit(
            {
                "path": store.root,
                "objects": used.objects,
                "work": used.work,
                "tmp": used.tmp,
                "total": used.total,
            }
        )
    else:
        parts = f"{human_bytes(used.objects)} outputs, {human_bytes(used.work)} interrupted work"
        typer.echo(f"{store.root}: {human_bytes(used.total)} ({parts})")


@app.command()
@verb
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would go.")] = False,
    older_than: Annotated[
        float, typer.Option(help="Hours since an output was last used.", min=0, callback=finite)
    ] = 24.0,
    json: JsonOption = False,
) -> None:
    """Remove outputs that no artifact uses, and scratch of builds that were never resumed.

    Example: llmbuild store gc --dry-run
    """
    from toolchain.pipeline import collect
    from toolchain.pipeline.store import Store
    from toolchain.plan.memory import human_bytes

    with Store.open() as store:
        collected = collect.gc(store, older_than=older_than * 3600, dry_run=dry_run)
    if json:
        emit(
            {
                "objects": collected.objects,
                "work": collected.work,
                "freed": collected.freed,
                "dry_run": dry_run,
            }
        )
        return
    verb_ = "would free" if dry_run else "freed"
    typer.echo(
        f"{verb_} {human_bytes(collected.freed)}: {len(collected.objects)} outputs, "
        f"{len(collected.work)} interrupted stages"
    )


@app.command()
@verb
def verify(json: JsonOption = False) -> None:
    """Read every stored byte and compare its sha256. Exits with 7 if anything is damaged.

    Example: llmbuild store verify
    """
    from toolchain.errors import StoreError
    from toolchain.pipeline.events import show_progress
    from toolchain.pipeline.store import Store

    with Store.open() as store, show_progress(as_json=json) as progress:
        problems = store.verify(progress)
    if problems:
        first = problems[0]
        raise StoreError(
            f"{len(problems)} stored files are damaged",
            where=first.where,
            why="; ".join(str(problem.where) for problem in problems[1:5]) or first.why,
            fix=first.fix,
        )
    if json:
        emit({"damaged": 0})
    else:
        typer.echo("every stored byte is what was written")
