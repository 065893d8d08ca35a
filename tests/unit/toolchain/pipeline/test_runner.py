import os
import subprocess
import sys
from dataclasses import replace

import pytest

from toolchain.errors import BuildError, GateError, QuantizeError, StoreError, UsageError
from toolchain.pipeline.runner import run_pipeline
from toolchain.pipeline.stage import Source, Stage


def _write(text):
    return lambda context: (context.out_dir / "file").write_text(text) and None


def test_what_the_store_holds_is_not_run_again(toy, store):
    first = run_pipeline(toy.stages(), store)
    second = run_pipeline(toy.stages(), store)
    assert [r.outcome for r in first] == ["run", "run"]
    assert [r.outcome for r in second] == ["cached", "cached"]
    assert [r.record for r in first] == [r.record for r in second]
    assert second[1].record.facts == {"parts": 3}
    assert (second[1].path / "all.txt").read_text().startswith("0: a text\n")
    assert (second[0].path / "empty").is_dir()


def test_a_changed_source_runs_what_depends_on_it(toy, store):
    run_pipeline(toy.stages(), store)
    toy.source.write_text("b text\n")
    assert [r.outcome for r in run_pipeline(toy.stages(), store)] == ["run", "run"]


def test_a_stage_that_comes_out_the_same_leaves_later_stages_cached(toy, store):
    run_pipeline(toy.stages(), store)
    newer = [Stage("parts", 2, toy.stages()[0].run, sources=toy.stages()[0].sources, config={"n": 3})]
    results = run_pipeline([*newer, toy.stages()[1]], store)
    assert [r.outcome for r in results] == ["run", "cached"]


def test_an_intermediate_is_made_only_when_its_stage_has_to_run(store):
    made = []

    def expensive(context):
        made.append("expensive")
        (context.out_dir / "file").write_text("x")

    def cheap(context):
        made.append("cheap")
        (context.out_dir / "file").write_text((context.inputs["own"] / "file").read_text() * 2)

    def stages(version=1, other=1):
        own = Stage("intermediate", version, expensive)
        return [Stage("whole", other, cheap, intermediates={"own": own})]

    (result,) = run_pipeline(stages(), store)
    assert (result.path / "file").read_text() == "xx"
    assert made == ["expensive", "cheap"]
    run_pipeline(stages(), store)
    assert made == ["expensive", "cheap"]  # the whole is there: the intermediate may be gone
    run_pipeline(stages(other=2), store)
    assert made == ["expensive", "cheap", "cheap"]
    run_pipeline(stages(version=2), store)  # it stands in the key, by its own key
    assert made == ["expensive", "cheap", "cheap", "expensive", "cheap"]


def test_until_stops_after_the_stage(toy, store):
    assert [r.stage.name for r in run_pipeline(toy.stages(), store, until="parts")] == ["parts"]
    assert "joined" not in toy.done()


def test_a_check_looks_at_new_and_stored_output_and_stops_the_build(toy, store):
    parts, joined = toy.stages()
    seen = []

    def refuse(path):
        seen.append((path / "sub" / "0.txt").read_text()[:9])
        raise GateError("not good enough")

    for _ in range(2):
        with pytest.raises(GateError, match="not good enough"):
            run_pipeline([replace(parts, check=refuse), joined], store)
    assert seen == ["0: a text"] * 2
    assert toy.done() == ["part0", "part1", "part2"]  # measured once, and nothing after it
    results = run_pipeline([replace(parts, check=lambda path: None), joined], store)
    assert [r.outcome for r in results] == ["cached", "run"]


@pytest.mark.parametrize("options", [{"until": "part"}, {"force": {"part"}}])
def test_an_unknown_stage_is_an_error_that_names_them(toy, store, options):
    with pytest.raises(UsageError, match="there is no stage part\n  fix: the stages are parts, joined"):
        run_pipeline(toy.stages(), store, **options)


def test_force_that_makes_the_same_bytes_changes_nothing_else(toy, store):
    first = run_pipeline(toy.stages(), store)
    second = run_pipeline(toy.stages(), store, force={"parts"})
    assert [r.outcome for r in second] == ["run", "cached"]
    assert first[0].path == second[0].path
    assert toy.done().count("part0") == 2


def test_force_that_makes_other_bytes_keeps_the_old_output_and_runs_what_follows(store):
    texts = iter(["one", "two"])
    stages = [
        Stage("random", 1, lambda context: _write(next(texts))(context)),
        Stage("copy", 1, lambda c: _write((c.inputs["random"] / "file").read_text())(c), inputs=("random",)),
    ]
    old = run_pipeline(stages, store)
    new = run_pipeline(stages, store, force={"random"})
    assert [r.outcome for r in new] == ["run", "run"]
    assert old[0].record.key == new[0].record.key
    assert [(r.path / "file").read_text() for r in (*old, *new)] == ["one", "one", "two", "two"]
    again = run_pipeline(stages, store)
    assert [r.path for r in again] == [r.path for r in new]


def test_a_failed_stage_keeps_its_scratch_for_the_next_try(toy, store, assert_clean):
    def fail(index):
        if index == 2:
            raise QuantizeError("layer 2 does not converge", fix="use another method")

    toy.on_part = fail
    with pytest.raises(QuantizeError, match="layer 2 does not converge"):
        run_pipeline(toy.stages(), store)
    assert list(store.tmp.iterdir()) == []
    toy.on_part = lambda _: None
    run_pipeline(toy.stages(), store)
    assert toy.done() == ["part0", "part1", "part2", "joined"]
    assert_clean(store.root)


def test_force_starts_from_scratch(toy, store):
    def fail(index):
        if index == 2:
            raise QuantizeError("no")

    toy.on_part = fail
    for _ in range(2):
        with pytest.raises(QuantizeError, match="no"):
            run_pipeline(toy.stages(), store, force={"parts"})
    assert toy.done() == ["part0", "part1", "part0", "part1"]


def test_a_defect_of_a_stage_is_not_dressed_up(store):
    def defect(context):
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError, match="a defect"):
        run_pipeline([Stage("s", 1, defect)], store)


def test_an_output_that_was_cut_short_is_an_error_that_names_the_way_out(toy, store):
    (result, _) = run_pipeline(toy.stages(), store)
    victim = result.path / "sub" / "1.txt"
    victim.chmod(0o644)
    os.truncate(victim, 5)
    with pytest.raises(
        StoreError, match=r"(?s)1\.txt: a stored output of stage parts is damaged.*5 bytes.*--force parts"
    ):
        run_pipeline(toy.stages(), store)
    results = run_pipeline(toy.stages(), store, force={"parts"})
    assert [r.outcome for r in results] == ["run", "cached"]
    assert store.verify() == []


def test_a_source_that_changes_while_it_is_read_fails_the_stage(tmp_path, store):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("a")

    def run(context):
        (source / "a").write_text("b")

    stage = Stage("s", 1, run, sources={"x": Source(source)})
    with pytest.raises(BuildError, match="a source of stage s changed while it was being read"):
        run_pipeline([stage], store)


def test_links_are_no_output(store):
    stage = Stage("s", 1, lambda context: (context.out_dir / "link").symlink_to("/"))
    with pytest.raises(BuildError, match="link: a stage's output may hold files and directories only"):
        run_pipeline([stage], store)


def test_outputs_are_read_only_and_executables_stay_so(store):
    def run(context):
        (context.out_dir / "script").write_text("#!/bin/sh\n")
        (context.out_dir / "script").chmod(0o755)
        (context.out_dir / "data").write_text("x")

    (result,) = run_pipeline([Stage("s", 1, run)], store)
    assert (result.path / "script").stat().st_mode & 0o777 == 0o555
    assert (result.path / "data").stat().st_mode & 0o222 == 0


@pytest.mark.parametrize(
    "stages",
    [
        [Stage("a", 1, print), Stage("a", 1, print)],
        [Stage("a", 1, print, inputs=("b",)), Stage("b", 1, print)],
        [Stage("b", 1, print), Stage("a", 1, print, inputs=("b",), sources={"b": Source(os.curdir)})],
    ],
)
def test_stages_that_do_not_fit_together_are_a_defect(store, stages):
    with pytest.raises(ValueError, match="duplicate name, or inputs that do not come before it"):
        run_pipeline(stages, store)


def test_time_and_peak_memory_are_those_of_the_stage(store):
    def hungry(context):
        assert len(bytearray(200 << 20)) > 0

    first, second = run_pipeline([Stage("hungry", 1, hungry), Stage("modest", 1, lambda _: None)], store)
    assert first.record.peak_memory > 200 << 20
    assert second.record.peak_memory < first.record.peak_memory - (150 << 20)
    assert first.record.seconds > 0


def test_memory_of_a_child_process_counts(store, fork):
    command = [sys.executable, "-c", "bytearray(300 << 20)"]
    stage = Stage("s", 1, lambda _: subprocess.run(command, check=True) and None)
    # In a process of its own, which had no larger child before.
    peak = fork(lambda: run_pipeline([stage], store)[0].record.peak_memory).result()
    assert peak > 300 << 20


def test_nothing_heavy_is_imported():
    code = (
        "import sys, toolchain.pipeline.artifact, toolchain.pipeline.events, toolchain.pipeline.runner\n"
        "print([m for m in ('torch', 'transformers', 'openvino', 'numpy', 'rich') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
