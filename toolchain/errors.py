"""The error tree: what a user can run into, and the exit code of each.

An error says what was wrong, where, why, and the command or edit that mends it. It prints as plain
lines and serializes to JSON, so that a terminal and a CI system read the same facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar


class LlmbuildError(Exception):
    """Something a user can act on. Anything else that escapes is a defect of ours.

    Args:
        what: one sentence: what was wrong.
        where: file:line:column, tensor name, stage or address.
        why: the reason, or the last lines of a log.
        fix: the command or edit that mends it.
    """

    exit_code: ClassVar[int] = 6
    kind: ClassVar[str] = "error"

    def __init__(
        self, what: str, *, where: str | None = None, why: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.fix = what, where, why, fix

    def __str__(self) -> str:
        lines = [self.what if self.where is None else f"{self.where}: {self.what}"]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same facts as a JSON object: kind, exit_code, what, and where, why, fix when known."""
        facts = {"what": self.what, "where": self.where, "why": self.why, "fix": self.fix}
        return {"kind": self.kind, "exit_code": self.exit_code} | {k: v for k, v in facts.items() if v}


class UsageError(LlmbuildError):
    """A command line, or an input file named on it, that cannot be used as given."""

    exit_code = 2
    kind = "usage"


class RecipeError(LlmbuildError):
    """A recipe that does not validate. Carries every problem found, not only the first."""

    exit_code = 2
    kind = "recipe"

    def __init__(self, problems: list[LlmbuildError]) -> None:
        count = len(problems)
        super().__init__(f"{count} problem{'s' if count != 1 else ''} in the recipe")
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The base object plus `problems`, one object each."""
        return super().to_json() | {"problems": [problem.to_json() for problem in self.problems]}


class ModelError(LlmbuildError):
    """A source model that is unknown, incomplete, truncated or numerically broken."""

    exit_code = 2
    kind = "model"


class DataError(LlmbuildError):
    """A data set of text that cannot be found or read, is malformed, or too short."""

    exit_code = 2
    kind = "data"


class PlanError(LlmbuildError):
    """The recipe is well formed but cannot work: it does not fit, or parts exclude each other."""

    exit_code = 3
    kind = "plan"


class GateError(LlmbuildError):
    """A quality or speed gate failed."""

    exit_code = 4
    kind = "gate"


class ToolchainError(LlmbuildError):
    """A tool that the recipe needs is missing here, or is an incompatible version."""

    exit_code = 5
    kind = "toolchain"


class QuantizeError(LlmbuildError):
    """Quantization failed: bad calibration data, numerics, an unusable resume state."""

    kind = "quantize"


class BuildError(LlmbuildError):
    """Converting a checkpoint or building an engine failed."""

    kind = "build"


class PackageError(LlmbuildError):
    """A Triton model repository that could not be rendered or would not load."""

    kind = "package"


class LaunchError(LlmbuildError):
    """A server that could not be found, started or reached, or that died."""

    kind = "launch"


class RequestError(LlmbuildError):
    """The server answered a request with an error."""

    kind = "request"


class StoreError(LlmbuildError):
    """The artifact store: full disk, wrong permissions, damaged content."""

    exit_code = 7
    kind = "store"


E = TypeVar("E", bound=LlmbuildError)


def combined(found: Sequence[E]) -> E:
    """One error that tells of all of `found` (of one class): the first, with the others as its reason."""
    first, *others = found
    if not others:
        return first
    why = "; ".join(filter(None, [first.why, *(f"also: {other.what}" for other in others)]))
    fixes = dict.fromkeys(error.fix for error in found if error.fix)
    return type(first)(first.what, where=first.where, why=why, fix="; and ".join(fixes) or None)


EXIT_INTERRUPTED = 130
"""Exit code after Ctrl-C or SIGTERM."""


def os_error(error: OSError, doing: str) -> StoreError:
    """Turn an `OSError` met while `doing` something into a `StoreError` with a way out."""
    import errno

    fixes = {
        errno.ENOSPC: "free space, run `llmbuild store gc`, or point LLMBUILD_STORE at a larger disk",
        errno.EDQUOT: "free space within the quota, or point LLMBUILD_STORE elsewhere",
        errno.EROFS: "point LLMBUILD_STORE at a writable directory",
        errno.EACCES: "check the permissions, or point LLMBUILD_STORE at a writable directory",
        errno.EPERM: "check the permissions, or point LLMBUILD_STORE at a writable directory",
    }
    return StoreError(
        f"cannot {doing}: {error.strerror or error}",
        where=str(error.filename) if error.filename else None,
        fix=fixes.get(error.errno or 0),
    )


def file_error(error: OSError, doing: str) -> UsageError:
    """Turn an `OSError` met while `doing` something with a file that the user named into a `UsageError`."""
    import errno

    fixes = {
        errno.ENOSPC: "free space, or name a file on another disk",
        errno.EDQUOT: "free space within the quota, or name a file on another disk",
        errno.ENOENT: "check the path, and that its directory exists",
        errno.EEXIST: "name another one",
        errno.EROFS: "name one that can be written",
        errno.EACCES: "check the permissions, or name another one",
        errno.EPERM: "check the permissions, or name another one",
    }
    name = str(error.filename or "")
    return UsageError(
        f"cannot {doing}: {error.strerror or error}",
        where=(name if len(name) <= 200 else f"{name[:80]}...{name[-40:]}") or None,
        fix=fixes.get(error.errno or 0, "check the path"),
    )
