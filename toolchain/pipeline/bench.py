"""What `llmbuild bench` measures: its targets are reached, or served meanwhile, one after the other."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.bench.openai import OpenAiTarget
from deploy.bench.orders import Order, Prompts, text_prompts, vocabulary_prompts
from deploy.bench.plan import Level, Measured, Plan, measure
from deploy.bench.result import Benched
from deploy.bench.target import Target
from deploy.bench.triton import TritonTarget
from toolchain.errors import LlmbuildError, UsageError, file_error
from toolchain.model.tokenizer import load_tokenizer
from toolchain.pipeline.artifact import Artifact
from toolchain.pipeline.reach import artifact_of, reached

_LARGEST_CONCURRENCY = 4096


@dataclass(frozen=True)
class Asking:
    """How targets are asked.

    Args:
        model: None: `ensemble` of Triton, the first of an OpenAI server.
        is_chat: use OpenAI's chat completions.
        token: bearer token of OpenAI servers.
        extra: further fields, or input tensors, of every request.
    """

    model: str | None = None
    is_chat: bool = False
    token: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def find_artifacts(names: Sequence[str]) -> list[Path | None]:
    """The artifact that each name means; None for addresses. Raises UsageError."""
    return [None if _is_http(name) else artifact_of(name) for name in names]


def run_bench(
    plan: Plan,
    benched: Sequence[Benched],
    asking: Asking,
    *,
    on_start: Callable[[str], None],
    on_progress: Callable[[str, Measured, bool], None],
) -> LlmbuildError | KeyboardInterrupt | None:
    """Measure `plan` on the targets; fills `benched`.

    Args:
        plan: the same for all.
        benched: the targets by name.
        asking: how.
        on_start: called with the name of an artifact before a server is started for it.
        on_progress: called with the name of the target about twice a second, as `measure` does.

    Returns:
        What ended it early, if there is something to show nevertheless.

    Raises:
        LlmbuildError, KeyboardInterrupt: what ended it before there was.
    """
    try:
        for one, artifact in zip(benched, find_artifacts([one.name for one in benched]), strict=True):
            with _opened(one.name, artifact, asking, plan.timeout_s, on_start) as target:
                one.address, one.model, one.server = target.address, target.model, target.server
                measure(plan, target, one.levels, functools.partial(on_progress, one.name))
    except (LlmbuildError, KeyboardInterrupt) as error:
        if not any(record.is_done for one in benched for level in one.levels for record in level.records):
            raise
        return error
    return None


@contextlib.contextmanager
def _opened(
    name: str, artifact: Path | None, asking: Asking, timeout_s: float, on_start: Callable[[str], None]
) -> Iterator[Target]:
    with contextlib.ExitStack() as stack:
        target: Target
        if _is_http(name):
            target = OpenAiTarget(
                name,
                asking.model,
                is_chat=asking.is_chat,
                token=asking.token,
                extra=asking.extra,
                timeout_s=timeout_s,
            )
        else:
            address = stack.enter_context(reached(name, artifact, lambda: on_start(name)))
            target = TritonTarget(address, asking.model or "ensemble", asking.extra)
        stack.callback(target.close)
        yield target


def find_prompts(
    text: Path | None, tokenizer: Path | None, artifacts: Sequence[Path | None], *, are_needed: bool
) -> tuple[Prompts | None, str]:
    """What makes the prompts, and how it is described.

    Args:
        text: a file to cut them from.
        tokenizer: a directory with tokenizer.json; None: that of the first artifact.
        artifacts: of the targets.
        are_needed: whether there must be some.

    Raises:
        UsageError: there is neither a tokenizer nor a text and one is needed, or a file cannot be read.
    """
    artifact = next(filter(None, artifacts), None)
    if tokenizer is None and artifact is not None:
        tokenizer = Artifact.open(artifact).dir("quantize")
    loaded = load_tokenizer(tokenizer) if tokenizer is not None else None
    if text is not None:
        try:
            words = text.read_text(encoding="utf-8")
        except OSError as error:
            raise file_error(error, "read the text for the prompts") from None
        except UnicodeDecodeError as error:
            raise UsageError(
                "the text for the prompts is not UTF-8", where=str(text), why=str(error)
            ) from None
        return text_prompts(words, loaded), f"cut from {text}" + ("" if loaded else ", words for tokens")
    if loaded is not None:
        return vocabulary_prompts(loaded), "random words of the tokenizer"
    if are_needed:
        raise UsageError(
            "there is nothing to make prompts of",
            why="an address tells no tokenizer",
            fix="give a text with --text, or a tokenizer with --tokenizer",
        )
    return None, "none"


def parse_levels(
    concurrency: str | None, rate: str | None, trace: Sequence[Order] | None
) -> tuple[Level, ...]:
    """The loads that the options ask for. Raises UsageError."""
    given = None if trace is None else tuple(trace)
    if rate is not None:
        if concurrency is not None or trace is not None:
            raise UsageError("a rate goes with neither a concurrency nor a trace", fix="give one of them")
        return tuple(Level(rate=value) for value in _numbers(rate, float, "--rate", 1e6))
    if concurrency is not None or given is None:
        values = _numbers(concurrency or "1", int, "--concurrency", _LARGEST_CONCURRENCY)
        return tuple(Level(concurrency=int(value), trace=given) for value in values)
    return (Level(trace=given),)


def parse_extra(given: Sequence[str]) -> dict[str, Any]:
    """Fields from `NAME=JSON`; what is no JSON is text. Raises UsageError."""
    found: dict[str, Any] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not name or not separator:
            raise UsageError(f"{text!r} is no field", fix="give it as NAME=VALUE, like ignore_eos=true")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def read_token(variable: str | None) -> str | None:
    """The bearer token in an environment variable. Raises UsageError if it is not set."""
    if variable is None:
        return None
    if not (token := os.environ.get(variable)):
        raise UsageError(
            f"the environment variable {variable!r} is not set", fix="export it, or leave it out"
        )
    return token


def _numbers(text: str, kind: type[int] | type[float], option: str, largest: float) -> list[float]:
    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value <= largest for value in values):
        raise UsageError(
            f"{option} {text!r} is no list of numbers from above 0 to {largest:g}",
            fix=f"give one like {option} 1,4,16",
        )
    return values


def _is_http(name: str) -> bool:
    return name.startswith(("http://", "https://"))
