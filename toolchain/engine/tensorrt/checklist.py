"""The checklist of a TensorRT-LLM checkpoint: everything that is wrong with it, all at once.

TensorRT-LLM's own loader refuses missing tensors and wrong shapes, warns of wrong dtypes and computes
nonsense with them, and notices nothing of wrong values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from quantize.formats.base import Part
from toolchain.engine.tensorrt.config_checks import config_findings
from toolchain.engine.tensorrt.expected import expected_tensors
from toolchain.engine.tensorrt.rank import RankFile
from toolchain.engine.tensorrt.rank_config import PLAIN_ALGOS, load_rank_config
from toolchain.engine.tensorrt.value_checks import shared_findings, value_findings
from toolchain.errors import ModelError
from toolchain.findings import WARNING, Finding, errors, grouped
from toolchain.progress import Progress, Silent

_SHOWN = 3  # tensors of one kind that are named
_AGAIN = "convert the model again"


def check_checkpoint(
    directory: Path,
    *,
    target: str | None = None,
    values: bool = True,
    weights: bool = True,
    progress: Progress | None = None,
) -> list[Finding]:
    """Everything that is wrong with the checkpoint in `directory`; empty when nothing is.

    Args:
        directory: with `config.json` and the rank files.
        target: the version of TensorRT-LLM that will build the engine, if that is known.
        values: read what describes weights too, scales above all; without, only headers are read.
        weights: and the weights themselves, for NaN.
        progress: is told how many ranks are done.
    """
    try:
        config = load_rank_config(directory)
    except ModelError as error:
        return [_of_error(error)]
    found = list(config_findings(config, target))
    if errors(found):
        return found  # what a rank should hold does not follow from a contradiction
    progress = progress or Silent()
    progress.start("check ranks", config.mapping.files, "ranks")
    files = []
    for rank in range(config.mapping.files):
        try:
            file = RankFile(config, rank)
        except ModelError as error:
            found.append(_of_error(error))
            continue
        own = list(_tensor_findings(file))
        found += own
        if not errors(own):
            files.append(file)
            found += value_findings(file, weights=weights) if values else ()
        progress.advance()
    if values:
        found += shared_findings(files)
    return found


def require_sound(directory: Path, *, target: str | None = None, values: bool = False) -> list[Finding]:
    """Raise ModelError with the errors of `check_checkpoint`, weights unread; return the warnings."""
    found = check_checkpoint(directory, target=target, values=values, weights=False)
    wrong = errors(found)
    if wrong:
        raise ModelError(
            f"the checkpoint has {len(wrong)} error{'s' * (len(wrong) > 1)}",
            where=wrong[0].where,
            why="; ".join(_sentence(finding) for finding in grouped(wrong)[:_SHOWN]),
            fix=wrong[0].fix or f"`llmbuild inspect {directory}` lists all of them",
        )
    return found


def _sentence(finding: Finding) -> str:
    return f"{finding.what}: {finding.why}" if finding.why else finding.what


def _of_error(error: ModelError) -> Finding:
    return Finding(error.what, error.where or "", error.why or "", error.fix or "")


def _tensor_findings(file: RankFile) -> Iterator[Finding]:
    """Names, shapes and dtypes of a rank file against what belongs there."""
    expected, stored = expected_tensors(file.config, file.rank), file.checkpoint
    where = str(file.config.rank_file(file.rank))
    processed = _processed(file)
    if processed:
        yield Finding(
            f"the weights of {len(processed)} linears are int8 already: {_some(processed)}",
            where,
            "they were permuted for one kind of GPU, which the file does not name",
            "convert with llmbuild, which leaves them to trtllm-build on the GPU that will serve",
            WARNING,
        )
    skipped = tuple(f"{module}." for module in (*expected.unknown, *processed))
    known = {
        name: part
        for name, part in (expected.required | expected.optional).items()
        if not name.startswith(skipped)
    }
    missing = [name for name in known if name in expected.required and name not in stored]
    if missing:
        yield Finding(
            f"{_count(missing)} missing: {_some(missing)}",
            where,
            "TensorRT-LLM refuses the file" + _stage_hint(file, missing),
            _AGAIN,
        )
    surplus = [name for name in stored.names if name not in known and not name.startswith(skipped)]
    if surplus:
        yield Finding(
            f"{_count(surplus)} not part of the model: {_some(surplus)}",
            where,
            "TensorRT-LLM ignores them, and its versions up to 0.9 refuse the file",
            _AGAIN,
            WARNING,
        )
    for name, part in known.items():
        if name in stored:
            yield from _part_findings(file, name, part)


def _processed(file: RankFile) -> list[str]:
    """The linears of W8A16 and W4A16 whose weights are not plain."""
    if file.config.quant_algo not in PLAIN_ALGOS:
        return []
    scale = ".per_channel_scale"
    return [name.removesuffix(scale) for name in file.checkpoint.names if name.endswith(scale)]


def _part_findings(file: RankFile, name: str, part: Part) -> Iterator[Finding]:
    shape, dtype = file.checkpoint.shape(name), file.checkpoint.dtype(name)
    where = f"{file.config.rank_file(file.rank)}: {name}"
    if shape == () and part.shape == (1,):
        yield Finding(
            "it has no dimension, where [1] is expected",
            where,
            "versions before 1.0 refuse it",
            "write it as [1]",
            WARNING,
        )
    elif shape != part.shape:
        yield Finding(
            f"it is {list(shape)}, expected {list(part.shape)}",
            where,
            f"rank {file.tp_rank} of {file.config.mapping.tp} in stage {file.stage} has that part",
            _AGAIN,
        )
    if dtype not in part.dtypes:
        yield Finding(
            f"it is {dtype}, expected {' or '.join(part.dtypes)}",
            where,
            "TensorRT-LLM only warns of it, and computes something else",
            _AGAIN,
        )


def _stage_hint(file: RankFile, missing: Sequence[str]) -> str:
    layers = {name.split(".")[2] for name in missing if name.startswith("transformer.layers.")}
    if not layers:
        return ""
    return f"; stage {file.stage} has layers 0 to {len(file.layers) - 1}, as it counts them"


def _count(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s are' if len(names) > 1 else ' is'}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
