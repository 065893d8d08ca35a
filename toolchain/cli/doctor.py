"""`llmbuild doctor`: what is here, what is missing, how to get it."""

from __future__ import annotations

from toolchain.cli.common import JsonOption, emit, table, verb


@verb
def doctor(json: JsonOption = False) -> None:
    """Look at this machine: tools and their versions, memory, disk; and how to get what is missing.

    Example: llmbuild doctor
    """
    from toolchain.pipeline.tools import examine

    findings = examine()
    if json:
        emit([vars(finding) for finding in findings])
        return
    table(
        ["", "what", "found", "if you need it"],
        [["ok" if f.ok else "--", f.what, f.found, "" if f.ok else f.fix] for f in findings],
    )
