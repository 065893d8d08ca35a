"""TensorRT-LLM's releases and what belongs to each (`data/releases.yaml`), as values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from packaging.version import InvalidVersion, Version

from toolchain.data import load_table
from toolchain.errors import UsageError


@dataclass(frozen=True)
class Release:
    """One release of TensorRT-LLM; None for whatever no source states.

    Args:
        version: as in `tensorrt_llm.__version__` and in an engine's config.json.
        triton: tags YY.MM of the Triton containers that have it, newest first.
        tensorrt: the TensorRT that it builds engines for and runs them on.
        cuda, driver, python, modelopt, torch, transformers: versions that go with it.
        flavours: the engine flavours that work with it.
    """

    version: str
    triton: tuple[str, ...] = ()
    tensorrt: str | None = None
    cuda: str | None = None
    driver: str | None = None
    python: str | None = None
    modelopt: str | None = None
    torch: str | None = None
    transformers: str | None = None
    flavours: tuple[str, ...] = ()

    @property
    def triton_image(self) -> str | None:
        """The newest Triton container that has it: what serves it, and so what builds for it."""
        if not self.triton:
            return None
        return str(load_table("releases")["images"]["triton"].format(tag=self.triton[0]))

    @property
    def standalone_image(self) -> str | None:
        """NVIDIA's container without Triton, where it has one."""
        images = load_table("releases")["images"]
        own = Version(self.version)
        if own < Version(images["standalone_since"]) or len(own.release) > 3:
            return None
        return str(images["standalone"].format(version=self.version))

    @property
    def image(self) -> str | None:
        """The container to build with: the one that will serve, or else the one without Triton."""
        return self.triton_image or self.standalone_image


@cache
def releases() -> tuple[Release, ...]:
    """All of them, oldest first."""
    found = []
    for version, facts in load_table("releases")["releases"].items():
        works = tuple(name for name, range_ in load_table("flavours").items() if _within(version, range_))
        found.append(Release(version, **{**facts, "triton": tuple(facts.get("triton", ()))}, flavours=works))
    return tuple(found)


def release(version: str) -> Release | None:
    """The release of that version, however it is written (1.2.1 and v1.2.1 are one); None if unknown."""
    try:
        wanted = Version(version)
    except InvalidVersion:
        return None
    return next((known for known in releases() if Version(known.version) == wanted), None)


def container_release(tag: str) -> Release:
    """The release in a Triton container.

    Args:
        tag: "25.12", the whole tag, or the image with its tag.

    Raises:
        UsageError: no such container is known.
    """
    month = tag.rpartition(":")[2].partition("-")[0]
    for known in releases():
        if month in known.triton:
            return known
    tags = [found for known in releases() for found in known.triton]
    raise UsageError(
        f"nothing is known of a Triton container {tag!r} with TensorRT-LLM",
        fix=f"known are {min(tags)} to {max(tags)}: `llmbuild compat --releases` lists them",
    )


def default_version(flavour: str) -> str:
    """The version that a recipe without `engine.version` means: the newest stable one that works."""
    stable = [
        known.version
        for known in releases()
        if flavour in known.flavours and not Version(known.version).is_prerelease
    ]
    return stable[-1]


def nearest(version: str, candidates: list[Release]) -> Release | None:
    """The oldest of `candidates` that is newer than `version`, or else the newest of them."""
    newer = [known for known in candidates if Version(known.version) >= Version(version)]
    return newer[0] if newer else candidates[-1] if candidates else None


def _within(version: str, range_: dict[str, str]) -> bool:
    own = Version(version)
    before = range_.get("before")
    return own >= Version(range_["first"]) and (before is None or own < Version(before))
