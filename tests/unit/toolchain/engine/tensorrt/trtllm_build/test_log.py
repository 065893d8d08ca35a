"""What is read from trtllm-build's log. The lines are of its version 0.20."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolchain.engine.tensorrt.trtllm_build.log import BuildLog
from toolchain.errors import ToolchainError

from .conftest import Notes

RANK = """\
[08/27/2025-08:22:19] [TRT-LLM] [I] Set gpt_attention_plugin to float16.
[08/27/2025-08:22:19] [TRT-LLM] [W] Implicitly setting LLaMAConfig.has_partial_lora_mask = False
[08/27/2025-08:22:19] [TRT-LLM] [W] Overriding paged_state to False
[08/27/2025-08:22:22] [TRT-LLM] [I] Total time of constructing network from module object 2.3651156425476074 seconds
[08/27/2025-08:22:30] [TRT] [I] Engine generation completed in 5.37531 seconds.
[08/27/2025-08:22:30] [TRT-LLM] [I] Build phase peak memory: 6978.95 MB, children: 12049.21 MB
[08/27/2025-08:22:31] [TRT-LLM] [I] Serializing engine to /workspace/engine/rank0.engine...
[08/27/2025-08:22:31] [TRT-LLM] [I] Engine serialized. Total time: 00:00:00
""".splitlines()  # noqa: E501


def test_progress_phases_and_warnings_of_two_ranks() -> None:
    progress = Notes()
    log = BuildLog("0.20.0", progress)
    for line in ["[TensorRT-LLM] TensorRT-LLM version: 0.20.0", *RANK, *RANK]:
        log.feed(line)
    assert log.ranks == progress.done == 2
    assert log.peak_mb == pytest.approx(19028.16)
    assert progress.notes.count("trtllm-build: Overriding paged_state to False") == 1
    assert progress.notes.count("kernels chosen in 5 s") == 2
    assert not any("Implicitly" in note or "plugin" in note for note in progress.notes)
    assert log.fix(1) is None


@pytest.mark.parametrize("brand", ["TensorRT-LLM", "TensorRT LLM"])
def test_both_spellings_of_the_version(brand: str) -> None:
    with pytest.raises(ToolchainError, match=r"is of TensorRT-LLM 1\.1\.0, and the recipe is for 1\.2\.1"):
        BuildLog("1.2.1", Notes()).feed(f"[TensorRT-LLM] {brand} version: 1.1.0")


@pytest.mark.parametrize(
    ("line", "status", "fix"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", 1, "max_num_tokens"),
        ("trtllm-build: error: unrecognized arguments: --x", 2, "set engine.version"),
        ("OSError: [Errno 28] No space left on device", 1, "LLMBUILD_STORE"),
        ("docker: Error response from daemon: could not select device driver", 125, "container toolkit"),
        ("nothing special", -9, "lower engine.build.workers"),
        ("nothing special", 137, "lower engine.build.workers"),
    ],
)
def test_what_mends_a_failure(line: str, status: int, fix: str) -> None:
    log = BuildLog("1.2.1", Notes())
    log.feed(line)
    log.feed("the last line")
    assert fix in str(log.fix(status))
    assert log.last_lines.endswith("the last line")


@given(st.lists(st.text(max_size=80), max_size=20))
def test_no_line_is_too_strange(lines: list[str]) -> None:
    log = BuildLog("1.2.1", Notes())
    for line in lines:
        log.feed(line)
    assert log.ranks == 0


def test_warnings_do_not_flood() -> None:
    progress = Notes()
    log = BuildLog("1.2.1", progress)
    for number in range(1000):
        log.feed(f"[11/25/2026-01:02:03] [TRT-LLM] [W] warning {number}")
    assert len(progress.notes) == 20
