"""The page and the table of a benchmark."""

import json
import re
from typing import Any

import pytest

from deploy.bench.lengths import Lengths
from deploy.bench.load import Record
from deploy.bench.plan import Level, Measured, Plan
from deploy.bench.result import Benched, to_json, without_records
from deploy.bench.slo import Objective
from deploy.bench.table import figure_rows, notes
from toolchain.report.bench import render


def result(*, stopped: str | None = None) -> dict[str, Any]:
    """Two targets, the second twice as slow, at two concurrencies; one request failed."""
    levels = (Level(concurrency=1), Level(concurrency=4))
    plan = Plan(levels, None, Lengths.parse("8"), Lengths.parse("3"), limits={"ttft_s": 0.15})

    def measured(level: Level, slow: float) -> Measured:
        records = [
            Record(3, 0.0, 0.0, 8, 3, True, [slow * at for at in (0.1, 0.2, 0.3 + number / 100)], None, True)
            for number in range(4)
        ]
        return Measured(level, [*records, Record(3, 0.0, error="out of <cache>", is_done=True)])

    targets = [
        Benched(name, "127.0.0.1:8001", "ensemble", "triton", [measured(level, slow) for level in levels])
        for name, slow in (("a&b", 1.0), ("other", 2.0))
    ]
    objectives = [Objective.parse("ttft_p95=150ms")]
    return to_json(plan, targets, objectives, started="today", prompts="words", stopped=stopped)


def test_the_result_is_json_with_its_conditions() -> None:
    found = json.loads(json.dumps(result(), allow_nan=False))
    assert found["schema"] == 1
    assert found["is_partial"] is False
    assert found["conditions"]["seed"] == 0
    assert {"processor", "python"} < set(found["machine"])
    level = found["targets"][1]["levels"][0]
    assert level["figures"]["ttft_s"]["p50"] == pytest.approx(0.2)
    assert len(level["records"]) == 5
    assert [one["is_met"] for one in found["objectives"]] == [True, True, False, False]
    assert "records" not in without_records(found)["targets"][0]["levels"][0]
    assert "figures" in without_records(found)["targets"][0]["levels"][0]


def test_further_targets_stand_beside_the_first_with_ratios() -> None:
    columns, rows = figure_rows(result())
    assert all(len(row) == len(columns) for row in rows)
    assert [row[:2] for row in rows[:2]] == [["concurrency 1", "a&b"], ["concurrency 1", "other"]]
    at = columns.index(">TTFT p50, ms")
    assert [row[at] for row in rows[:2]] == ["100.0", "200.0 (2.00x)"]
    assert rows[1][columns.index(">goodput/s")] == "0.00 (0.00x)"


def test_notes_tell_what_the_figures_hide() -> None:
    found = result()
    assert notes(found) == []
    figures = found["targets"][1]["levels"][0]["figures"]
    figures.update(are_tokens_counted_by_server=False, output_tokens_asked=99)
    figures["sent_late_s"]["p99"] = 0.5
    assert [note.split(" ")[0] for note in notes(found)] == ["other", "other", "requests"]
    assert "each response counts as one" in render(found)


def test_the_page_has_the_figures_and_loads_nothing() -> None:
    page = render(result())
    assert "200.0 (2.00x)" in page
    assert page.count("<svg") == 6
    assert "a&amp;b" in page
    assert "out of &lt;cache&gt;" in page
    assert "NOT MET" in page
    assert not re.search(r"(src|href|url)\s*[=(]", page)
    assert "Partial" not in page
    assert "Partial results: interrupted" in render(result(stopped="interrupted"))
