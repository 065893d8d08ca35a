"""The lines are those of Triton 2.51 for broken repositories."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.triton_log import Failure, LogFollower, failures

NOISE = [
    'I1123 17:38:18.275727 6853 model_lifecycle.cc:472] "loading: ensemble:1"',
    'E1123 17:38:18.274855 6853 server.cc:241] "CudaDriverHelper has not been initialized."',
    "+----------+---------+--------+",
    "",
]
RAISED = r"ValueError: no tokenizer\n\nAt:\n  /models/pre/1/model.py(6): initialize\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        (NOISE, []),
        (
            [
                f'I1123 17:38:18.3 6853 pb_stub.cc:366] "Failed to initialize Python stub: {RAISED}"',
                f"E1123 17:38 model_lifecycle.cc:642] \"failed to load 'pre' version 1: Internal: {RAISED}\"",
                "I1123 17:38:18.6 6853 model_lifecycle.cc:777] \"failed to load 'pre'\"",
                "error: creating server: Internal - failed to load all models",
            ],
            [Failure("pre", "ValueError: no tokenizer (/models/pre/1/model.py(6): initialize)")],
        ),
        (
            [
                "E1 model_repository_manager.cc:1] \"failed to load 'ensemble' version 1: Invalid argument: "
                "ensemble ensemble depends on 'pre' which has no loaded version\"",
                "E1 1 model_lifecycle.cc:642] \"failed to load 'pre' version 1: Internal: KeyError: 'x'\"",
            ],
            [
                Failure("pre", "KeyError: 'x'"),
                Failure("ensemble", "ensemble ensemble depends on 'pre' which has no loaded version"),
            ],
        ),
        (
            [
                "[libprotobuf ERROR /b/text_format.cc:337] Error parsing text-format inference.ModelConfig: "
                '12:9: Message type "inference.ModelConfig" has no field named "nonsense".',
                "E1123 model_repository_manager.cc:1460] \"Poll failed for model directory 'x': "
                'failed to read text proto from /r/x/config.pbtxt"',
                "error: creating server: Internal - failed to load all models",
            ],
            [
                Failure(
                    "x",
                    "failed to read text proto from /r/x/config.pbtxt: Error parsing text-format "
                    'inference.ModelConfig: 12:9: Message type "inference.ModelConfig" has no field named '
                    '"nonsense".',
                )
            ],
        ),
        (
            [
                "/b/stub: error while loading shared libraries: libpython3.12.so.1.0: "
                "cannot open shared object file: No such file or directory"
            ],
            [
                Failure(
                    None,
                    "/b/stub: error while loading shared libraries: libpython3.12.so.1.0: "
                    "cannot open shared object file: No such file or directory",
                )
            ],
        ),
        (
            [
                "E1123 17:38:43.0 6939 model_lifecycle.cc:642] \"failed to load 'a' version 1: Internal: "
                "Stub process 'a_0_0' is not healthy.\""
            ],
            [
                Failure(
                    "a",
                    "Stub process 'a_0_0' is not healthy. "
                    "(its process died: a crash, or the machine ran out of memory)",
                )
            ],
        ),
        (
            ["error: creating server: Internal - failed to stat file /nowhere"],
            [Failure(None, "failed to stat file /nowhere")],
        ),
        (
            ["error: creating server: Internal - failed to load all models"],
            [Failure(None, "failed to load all models")],
        ),
    ],
)
def test_finds_the_reason(lines: list[str], expected: list[Failure]) -> None:
    assert failures([*NOISE, *lines, *NOISE]) == expected


@given(st.lists(st.text()))
def test_takes_any_log(lines: list[str]) -> None:
    failures(lines)


def _follow(data: bytes, **options: object) -> LogFollower:
    follower = LogFollower(io.BytesIO(data), **options)  # type: ignore[arg-type]
    follower.join(10)
    return follower


def test_passes_every_line_on_and_keeps_the_last(tmp_path: Path) -> None:
    data = b"".join(b"line %d\n" % n for n in range(2000)) + b"+---+\n\xff no newline"
    seen: list[str] = []
    with (tmp_path / "log").open("ab", buffering=0) as file:
        follower = _follow(data, file=file, on_line=seen.append)
    assert (tmp_path / "log").read_bytes() == data
    assert len(seen) == 2002
    assert len(follower.lines) == 1000
    assert follower.tail(2) == ["line 1999", "\ufffd no newline"]


def test_reads_on_when_nobody_listens_any_more() -> None:
    def broken(line: str) -> None:
        raise BrokenPipeError("the terminal is gone")

    with Path(os.devnull).open("rb", buffering=0) as unwritable:
        follower = _follow(b"one\ntwo\n", file=unwritable, on_line=broken)
    assert follower.tail() == [
        "one",
        "llmbuild: the log is no longer passed on: File not open for writing",
        "llmbuild: the log is no longer passed on: the terminal is gone",
        "two",
    ]
