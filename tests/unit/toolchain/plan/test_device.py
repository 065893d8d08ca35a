from __future__ import annotations

import pytest

from toolchain.data import load_table
from toolchain.errors import UsageError
from toolchain.plan.device import gpu_overrides


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("h200", ["engine.gpu=h200"]),
        ("h200x4", ["engine.gpu=h200", "parallelism.gpus=4"]),
        ("a100-80gx16", ["engine.gpu=a100-80g", "parallelism.gpus=16"]),
        ("rtx-4090", ["engine.gpu=rtx-4090"]),
    ],
)
def test_gpus_on_the_command_line(text: str, overrides: list[str]) -> None:
    assert gpu_overrides(text) == overrides


@pytest.mark.parametrize(
    ("text", "near"), [("h20x4", "h200"), ("h100x0", "h100"), ("H100", "h100"), ("", None)]
)
def test_a_gpu_that_no_table_knows(text: str, near: str | None) -> None:
    with pytest.raises(UsageError, match="is no GPU that the tables know") as caught:
        gpu_overrides(text)
    assert near is None or near in str(caught.value.fix)


def test_nodes_are_told_of_gpus_with_nvlink_alone() -> None:
    for name, row in load_table("gpus").items():
        assert ("nvlink_gbs" in row) == ("node_gpus" in row), name
