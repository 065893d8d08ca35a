"""`llmbuild bench`: load on a server, and what its clients see of it."""

from __future__ import annotations

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolchain.cli.common import JsonOption, emit, finite, path_argument, table, verb

if TYPE_CHECKING:
    from deploy.bench.plan import Measured


def _finite(value: float | None) -> float | None:
    return None if value is None else finite(value)


@verb
def bench(
    target: Annotated[
        str,
        typer.Argument(help="An artifact, a gRPC address (host:port), or an OpenAI URL (http://.../v1)."),
    ],
    compare: Annotated[
        list[str] | None, typer.Option(help="A further target, put beside the first; may be repeated.")
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Requests kept under way, e.g. 8 or 1,4,16. Without any load: 1.")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Requests a second, arriving at random (Poisson), e.g. 2 or 1,2,4.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="A recorded trace (JSON Lines: arrival_s, prompt or input_tokens, output_tokens).",
            parser=path_argument,
        ),
    ] = None,
    requests: Annotated[
        int | None, typer.Option(help="Requests of each load. Default: 10 a stream.", min=1)
    ] = None,
    duration: Annotated[
        float | None, typer.Option(help="Seconds in which each load sends.", min=0.1, callback=_finite)
    ] = None,
    warmup: Annotated[int, typer.Option(help="Requests before, in none of the figures.", min=0)] = 4,
    input_tokens: Annotated[
        str, typer.Option(help="Length of prompts: N, uniform:LOW:HIGH or normal:MEAN:DEVIATION.")
    ] = "128",
    output_tokens: Annotated[str, typer.Option(help="Length of answers, likewise.")] = "64",
    text: Annotated[
        Path | None, typer.Option(help="Cut prompts from this text.", parser=path_argument)
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Directory of a tokenizer.json, where no artifact is named.", parser=path_argument),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of lengths, prompts and arrivals.")] = 0,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            help="What must hold, e.g. ttft_p95=200ms or output_tokens_per_s=400; else exit code 4."
        ),
    ] = None,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help="What a request must keep to count as goodput, e.g. ttft=200ms, tpot=50ms."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model to ask. Default: ensemble, or the URL's first.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask chat/completions of an OpenAI URL.")] = False,
    extra: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=JSON", help="A further field of every request, e.g. ignore_eos=true."),
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The environment variable with the bearer token of an OpenAI URL.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds of silence after which a request failed.", min=1, callback=finite)
    ] = 300.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the result, every request in it, as JSON.", parser=path_argument),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with plots, one file.", parser=path_argument)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Put load on a server and measure TTFT, TPOT, ITL, end-to-end latency, throughput and goodput.

    An artifact that `llmbuild serve` is serving is asked there; otherwise it is served meanwhile.
    `--compare` asks further targets the same, one after the other.

    Example: llmbuild bench artifacts/demo-int4 --concurrency 1,4 --requests 16 --html bench.html

    Example: llmbuild bench localhost:8001 --rate 2,4 --duration 60 --text prompts.txt --slo ttft_p95=200ms
    """
    from datetime import datetime, timezone

    from deploy.bench.lengths import Lengths
    from deploy.bench.orders import read_trace
    from deploy.bench.plan import Plan
    from deploy.bench.result import Benched, to_json
    from deploy.bench.slo import Objective, parse_limits
    from toolchain.errors import GateError, RequestError, UsageError
    from toolchain.pipeline import bench as pipeline

    for file in filter(None, (out, html)):  # before the work, not after it
        if not file.parent.is_dir():
            raise UsageError("there is no such directory", where=str(file.parent), fix="create it")
    names = [target, *(compare or [])]
    objectives = [Objective.parse(given) for given in slo or []]
    asking = pipeline.Asking(model, chat, pipeline.read_token(api_key_env), pipeline.parse_extra(extra or []))
    prompts, made_of = pipeline.find_prompts(
        text, tokenizer, pipeline.find_artifacts(names), are_needed=trace is None
    )
    plan = Plan(
        pipeline.parse_levels(concurrency, rate, read_trace(trace, prompts, seed) if trace else None),
        None if trace else prompts,
        Lengths.parse(input_tokens),
        Lengths.parse(output_tokens),
        requests=requests,
        duration_s=duration,
        warmup=warmup,
        seed=seed,
        timeout_s=timeout,
        limits=parse_limits(goodput or []),
    )
    started = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    benched = [Benched(name) for name in names]
    stopped = pipeline.run_bench(
        plan,
        benched,
        asking,
        on_start=lambda name: typer.echo(f"starting Triton for {name}", err=True),
        on_progress=_show_progress,
    )
    result = to_json(
        plan,
        benched,
        objectives,
        started=started,
        prompts=f"{made_of}, of the trace {trace}" if trace else made_of,
        stopped=None if stopped is None else (str(stopped).partition("\n")[0] or "interrupted"),
    )
    _show(result, as_json=json)
    _write(result, out, html)
    if stopped is not None:
        raise stopped
    levels = [level for one in result["targets"] for level in one["levels"]]
    if not any(level["figures"]["answered"] for level in levels):
        raise RequestError("no request was answered", why="; ".join(levels[0]["figures"]["errors"]) or None)
    missed = [one for one in result["objectives"] if not one["is_met"]]
    if missed:
        raise GateError(
            f"{len(missed)} of {len(result['objectives'])} objectives are not met",
            where="--slo",
            why="; ".join(
                f"{one['objective']} at {one['load']} of {one['target']}: {one['measured']}" for one in missed
            ),
            fix="lower the load, allow more, or build for more speed",
        )


def _show_progress(name: str, level: Measured, is_over: bool) -> None:
    """A line that is written over on a terminal; elsewhere only the end of a level has one."""
    done = sum(record.is_done for record in level.records)
    line = f"{name}, {level.level}: {done} requests done"
    if is_over:
        typer.echo(f"{line:<100}" if sys.stderr.isatty() else line, err=True)
    elif sys.stderr.isatty():
        typer.echo(f"{f'{line}, {len(level.records) - done} under way':<100.100}\r", nl=False, err=True)


def _write(result: dict[str, Any], out: Path | None, html: Path | None) -> None:
    from toolchain.errors import file_error
    from toolchain.report.bench import render

    try:
        if out is not None:
            out.write_text(dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if html is not None:
            html.write_text(render(result), encoding="utf-8")
    except OSError as error:
        raise file_error(error, "write the result") from None


def _show(result: dict[str, Any], *, as_json: bool) -> None:
    from deploy.bench.result import without_records
    from deploy.bench.table import error_rows, figure_rows, notes
    from toolchain.report.bench import objective_rows

    if as_json:
        emit(without_records(result))
    else:
        partial = f" (partial: {result['stopped']})" if result["is_partial"] else ""
        table(*figure_rows(result), title=", ".join(one["name"] for one in result["targets"]) + partial)
        if errors := error_rows(result):
            typer.echo()
            table(["target", "load", ">requests", "error"], errors)
        if result["objectives"]:
            typer.echo()
            table(*objective_rows(result["objectives"]))
    for note in notes(result):
        typer.echo(f"note: {note}", err=True)
