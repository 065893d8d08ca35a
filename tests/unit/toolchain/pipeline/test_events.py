import io
import json
import os
import pty
import re

import pytest

from toolchain.pipeline.events import (
    JsonLines,
    Lines,
    describe_amount,
    describe_duration,
    show_progress,
)


def test_lines_are_few_and_end_with_the_end():
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start("quantize", 1000, "layers", done=10)
    for _ in range(990):
        lines.advance()
    lines.note("the end")
    assert stream.getvalue().splitlines() == [
        "quantize: 10/1000 layers, 0 s",
        "quantize: 1000/1000 layers, 0 s",
        "the end",
    ]


def test_lines_estimate_from_what_this_run_did():
    stream = io.StringIO()
    lines = Lines(stream, every=0)
    lines.start("quantize", 32, "layers", done=30)
    lines.advance()
    assert stream.getvalue().splitlines()[1] == "quantize: 31/32 layers, 0 s, about 0 s left"


def test_lines_say_the_end_once():
    stream = io.StringIO()
    lines = Lines(stream)
    lines.start("a", 1)
    lines.advance()
    lines.advance()
    assert stream.getvalue().count("\n") == 2


def test_json_lines():
    stream = io.StringIO()
    with show_progress(stream, as_json=True) as progress:
        progress.start("quantize", 2, "layers", done=1)
        progress.advance()
        progress.note('with "quotes"')
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {"event": "start", "label": "quantize", "unit": "layers", "total": 2, "done": 1},
        {"event": "progress", "label": "quantize", "unit": "layers", "total": 2, "done": 2},
        {"event": "note", "text": 'with "quotes"'},
    ]


def test_json_lines_are_few():
    stream = io.StringIO()
    lines = JsonLines(stream)
    lines.start("a", 1000)
    for _ in range(1000):
        lines.advance()
    assert stream.getvalue().count("\n") == 2


def test_what_is_not_a_terminal_gets_lines():
    with show_progress(io.StringIO()) as progress:
        assert isinstance(progress, Lines)


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        with show_progress(terminal) as progress:
            progress.start("quantize", 4, "layers", done=1)
            progress.note("[not markup]")
            progress.start("hash", 2_000_000, "bytes")
            progress.advance(1_000_000)
        shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "1/4 layers" in plain
    assert "[not markup]" in plain
    assert "hash" in plain
    assert "1.0/2.0 MB" in plain


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (0, 12, "0/12 B"),
        (1500, 3000, "1.5/3.0 kB"),
        (1_000_000, 9_300_000_000, "0.0/9.3 GB"),
        (5_000_000_000, 9_300_000_000_000, "5.0/9300.0 GB"),
    ],
)
def test_bytes_in_words(done, total, text):
    assert describe_amount(done, total, "bytes") == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.9, "7 s"), (60, "1 min 0 s"), (185, "3 min 5 s"), (7800, "2 h 10 min")]
)
def test_durations_in_words(seconds, text):
    assert describe_duration(seconds) == text
