"""`llmbuild generate`: one prompt, streamed."""

from __future__ import annotations

from typing import Annotated

import typer

from toolchain.cli.common import JsonOption, emit, verb


@verb
def generate(
    target: Annotated[str, typer.Argument(help="An artifact, or the gRPC address of a server (host:port).")],
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    chat: Annotated[
        bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float | None, typer.Option(help="0: greedy, as without any of these.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest of this mass.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1 discourages repetition.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")] = None,
    json_schema: Annotated[
        str | None, typer.Option(help="Answer with JSON that this schema describes.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="Answer with text that this expression matches.")] = None,
    grammar: Annotated[str | None, typer.Option(help="Answer by this EBNF grammar's rule root.")] = None,
    model: Annotated[str, typer.Option(help="The model to ask.")] = "ensemble",
    json: JsonOption = False,
) -> None:
    """Stream the answer to a prompt over gRPC; time to first token and tokens/s at the end.

    An artifact that `llmbuild serve` is serving is asked there; otherwise it is served for this one answer.

    Example: llmbuild generate artifacts/demo-int4 "def read_lines(path):" --max-tokens 64
    """
    from deploy.client import Client, Summary, render_chat
    from toolchain.errors import UsageError
    from toolchain.pipeline.reach import artifact_of, reached

    artifact = artifact_of(target)
    guides = [
        (kind, text)
        for kind, text in (("json_schema", json_schema), ("regex", regex), ("ebnf_grammar", grammar))
        if text is not None
    ]
    if len(guides) > 1:
        raise UsageError("an answer can match one guide", fix="give one of --json-schema, --regex, --grammar")
    "".join([prompt, *(stop or [])]).encode()  # what cannot be sent is refused before a server is started
    if chat:
        if artifact is None:
            raise UsageError(
                "--chat needs an artifact, whose chat template it uses",
                fix="name artifacts/NAME as the target",
            )
        from toolchain.pipeline.artifact import Artifact

        messages = [{"role": "user", "content": prompt}]
        prompt = render_chat(Artifact.open(artifact).dir("quantize"), messages)
    text, summary = [], None

    def starting() -> None:
        typer.echo(f"starting Triton for {artifact}; `llmbuild serve {artifact}` keeps one running", err=True)

    with reached(target, artifact, starting) as address, Client(address) as client:
        for part in client.generate(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop_words=stop,
            guide=guides[0] if guides else None,
            model=model,
        ):
            if isinstance(part, Summary):
                summary = part
            else:
                text.append(part.text)
                if not json:
                    typer.echo(part.text, nl=False)
    if json:
        emit({"text": "".join(text), **(vars(summary) if summary else {})})
    else:
        typer.echo()
        if summary:
            typer.echo(f"\n{summary}", err=True)
