"""The table of TensorRT-LLM's releases: that it is consistent, and what is read from it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.version import Version

import toolchain.data
from toolchain.data import load_table
from toolchain.errors import UsageError
from toolchain.plan.kernels import version_problems
from toolchain.plan.releases import Release, container_release, default_version, nearest, release, releases

VERSIONS = [known.version for known in releases()]
TEXT = (Path(toolchain.data.__file__).parent / "releases.yaml").read_text("utf-8")


def test_sorted_and_named_once() -> None:
    assert sorted(VERSIONS, key=Version) == VERSIONS
    written = re.findall(r'^  "([^"]+)": \{', TEXT, re.MULTILINE)
    assert written == VERSIONS  # YAML itself would let a later row replace an earlier one
    assert all(str(Version(version)) == version for version in VERSIONS)


def test_a_container_holds_one_release_and_newer_ones_hold_newer() -> None:
    held = [(tag, known.version) for known in releases() for tag in sorted(known.triton)]
    assert len({tag for tag, _ in held}) == len(held)
    assert held == sorted(held)
    assert all(re.fullmatch(r"2\d\.(0[1-9]|1[0-2])", tag) for tag, _ in held)
    for known in releases():
        assert list(known.triton) == sorted(known.triton, reverse=True)


def test_every_month_of_triton_is_there() -> None:
    months = sorted(tag for known in releases() for tag in known.triton)
    first, last = (int(tag[:2]) * 12 + int(tag[3:]) - 1 for tag in (months[0], months[-1]))
    assert months == [f"{month // 12}.{month % 12 + 1:02}" for month in range(first, last + 1)]


@pytest.mark.parametrize("field", ["tensorrt", "cuda", "python", "modelopt", "torch", "transformers"])
def test_what_belongs_to_a_release_never_goes_back(field: str) -> None:
    found = [value for known in releases() if (value := getattr(known, field)) is not None]
    assert found == sorted(found, key=Version)
    assert all(re.fullmatch(r"\d+(\.\d+)+", value) for value in found)


@pytest.mark.parametrize("flavour", ["tensorrt", "pytorch"])
def test_the_range_of_a_flavour_begins_and_ends_at_releases(flavour: str) -> None:
    inside = [known for known in releases() if flavour in known.flavours]
    known = load_table("flavours")[flavour]
    assert Version(inside[0].version) == Version(known["first"])
    if "before" in known:
        assert inside[-1].version != VERSIONS[-1]
        assert Version(known["last_stable"]) == Version(default_version(flavour))
    assert [one.version for one in inside] == [v for v in VERSIONS if version_problems(flavour, v) == []]


def test_every_stable_release_with_engines_has_an_image_to_build_with() -> None:
    without = [
        known.version
        for known in releases()
        if "tensorrt" in known.flavours and not Version(known.version).is_prerelease and known.image is None
    ]
    assert without == ["0.18.1"]  # it never had a container


def test_what_builds_is_what_serves() -> None:
    known = release("v1.2.1")
    assert known is not None
    assert known.image == known.triton_image == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert known.standalone_image == "nvcr.io/nvidia/tensorrt-llm/release:1.2.1"
    assert known.tensorrt == "10.14.1.48"
    early = Release("0.19.0")
    assert (early.image, early.standalone_image) == (None, None)
    of_container = release("1.0.3.2510")
    assert of_container is not None
    assert of_container.standalone_image is None


@pytest.mark.parametrize(
    "tag", ["25.12", "25.12-trtllm-python-py3", "nvcr.io/nvidia/tritonserver:25.12-trtllm-python-py3"]
)
def test_the_release_in_a_container(tag: str) -> None:
    assert container_release(tag).version == "1.1.0"


def test_an_unknown_container() -> None:
    with pytest.raises(UsageError, match=r"a Triton container '23\.10'") as caught:
        container_release("23.10")
    assert "24.04 to 26.07" in str(caught.value.fix)


def test_versions_that_are_none() -> None:
    assert release("latest") is None
    assert release("1.2.9") is None


def test_the_nearest_is_the_next_newer_one() -> None:
    late = [known for known in releases() if known.version in ("0.19.0", "1.2.1")]
    assert nearest("0.18.0", late) == late[0]
    assert nearest("1.0.0", late) == late[1]
    assert nearest("1.3.0rc1", late) == late[1]
    assert nearest("1.0.0", []) is None
