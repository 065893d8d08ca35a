"""`llmbuild plan`: what a recipe needs, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from toolchain.cli.common import JsonOption, RecipeArgument, SetOption, emit, find_recipe, table, verb

if TYPE_CHECKING:
    from toolchain.plan.plan import Plan


@verb
def plan(recipe: RecipeArgument, set_: SetOption = None, json: JsonOption = False) -> None:
    """Say what a recipe needs and whether it can work: weights, KV cache, what fits, which tools are here.

    Exits with 3 when it cannot work. Needs no GPU and no weights.

    Example: llmbuild plan configs/llama70b-int4.yaml --set engine.gpu=l40s
    """
    from toolchain.pipeline.tools import missing_tools
    from toolchain.plan.plan import make_plan
    from toolchain.recipe import load_recipe

    loaded = load_recipe(find_recipe(recipe), set_ or [])
    made = make_plan(loaded)
    missing = missing_tools(loaded)
    if json:
        emit(made.to_json() | {"missing_tools": [error.to_json() for error in missing]})
    else:
        _print(made)
        for error in missing:
            typer.echo(f"\nnot here: {error}")
    made.check()


def _print(plan: Plan) -> None:
    from toolchain.plan.memory import human_bytes

    spec = plan.spec
    heads = f"{spec.num_attention_heads} heads, {spec.num_key_value_heads} KV heads of {spec.head_dim}"
    full = plan.max_batch_size * plan.max_seq_len
    wanted = f"{plan.max_batch_size} sequences of {plan.max_seq_len}"
    if plan.kv_tokens_wanted != full:
        wanted = f"engine.kv_cache.max_tokens; {wanted} would be {full}"
    kv = 2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim
    rows = [
        ["model", f"{spec.architecture}, {plan.parameters / 1e9:.3g} B parameters"],
        ["", f"{spec.num_hidden_layers} layers, {heads}"],
        ["facts from", plan.spec_origin],
        ["flavour", f"{plan.flavour}, {plan.ranks} rank{'s' if plan.ranks > 1 else ''}"],
        ["weights", f"{human_bytes(plan.source_bytes)} -> {human_bytes(plan.stored_bytes)} ({plan.method})"],
        *(["", text] for text in _by_method(plan)),
        ["", f"{human_bytes(plan.rank_bytes)} in memory{' on the fullest rank' if plan.ranks > 1 else ''}"],
        [
            "KV cache",
            f"{human_bytes(plan.kv_bytes_per_token)} a token in {plan.kv_dtype}"
            f"{' on a rank' if plan.ranks > 1 else ''} "
            f"(2 x {spec.num_hidden_layers} layers x {spec.num_key_value_heads} KV heads x {spec.head_dim}"
            f" = {kv} elements in all)",
        ],
        ["", f"{plan.kv_tokens_wanted} tokens wanted ({wanted})"],
    ]
    if plan.device_bytes is None:
        rows.append(["fits", f"unknown: {plan.device}"])
    else:
        rows.append(
            [
                "fits",
                f"{plan.kv_tokens_fit} tokens, {plan.sequences_fit} full-length sequences, in "
                f"{human_bytes(plan.device_bytes)} of {plan.device}",
            ]
        )
    rows.append(
        ["quantizing", f"about {human_bytes(plan.quantize_peak_bytes)} beside the libraries, any depth"]
    )
    table([plan.recipe, ""], rows)
    for note in plan.notes:
        typer.echo(f"note: {note}")


def _by_method(plan: Plan) -> list[str]:
    """What each method has, where there are several."""
    from toolchain.plan.memory import human_bytes

    if len(plan.by_method) < 2:
        return []
    found = plan.by_method
    lines = [
        f"{name}: {own.linears} linears, {human_bytes(own.stored)}, {own.bits:.2f} bits a weight"
        for name, own in sorted(found.items())
    ]
    bits = 8 * sum(own.stored for own in found.values()) / sum(own.weights for own in found.values())
    return [*lines, f"{bits:.2f} bits a weight over all linears"]
