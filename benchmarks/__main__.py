"""`make bench`: run every benchmark, keep the numbers, write docs/benchmarks.md.

python -m benchmarks [NAME ...]      only these; the others keep their last numbers
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from deploy.bench.conditions import conditions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BENCHMARKS = (
    *("cli", "quantize_memory", "ir_memory", "quantization", "quantization_gpu"),
    "convert_ranks",
    *("serving", "batching"),
)

INTRODUCTION = """\
# Benchmarks

Every figure is measured beside its peer or its limit in the same run, on the machine that the conditions
name; it is not a promise for another one. This page is written by the command that measures:

```text
make bench
```
"""


def main() -> None:
    """Run what the arguments name, or all of it."""
    names = sys.argv[1:] or BENCHMARKS
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        print(f"{name} ...", file=sys.stderr, flush=True)
        started = time.perf_counter()
        result = module.run()
        if result is None:  # it cannot run here
            continue
        title = (module.__doc__ or name).partition("\n")[0]
        results[name] = {
            "title": title,
            "date": date.today().isoformat(),
            "minutes": round((time.perf_counter() - started) / 60, 1),
            "conditions": conditions(),
            "result": result,
        }
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(page(results))


def page(results: dict[str, Any]) -> str:
    """The page, from the kept numbers."""
    parts = [INTRODUCTION]
    for name in BENCHMARKS:
        if name in results:
            parts.append(_section(name, results[name]))
    return "\n".join(parts)


def _section(name: str, kept: dict[str, Any]) -> str:
    result = dict(kept["result"])
    rows = result.pop("rows", None)
    lines = [f"## {kept['title']}", ""]
    lines += [f"- {key}: {value}" for key, value in result.items()]
    if rows:
        lines += ["", table(rows)]
    machine = "; ".join(f"{key} {value}" for key, value in kept["conditions"].items())
    lines += ["", f"`python -m benchmarks {name}`, {kept['date']}, {kept['minutes']} minutes. {machine}.", ""]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of one set of columns, as Markdown."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
