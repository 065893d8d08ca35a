"""The figures of an evaluation in words, for a terminal and for a report."""

from __future__ import annotations

from toolchain.gate.result import Evaluation, Floor


def figure_table(figures: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Column names and rows: figure, value, standard error, arithmetic floor."""
    floor = figures.floor
    columns = ["figure", "value", "standard error", f"{floor.dtype} arithmetic alone" if floor else ""]
    return columns, [
        ["perplexity of the source", f"{figures.source_perplexity:.4f}", "", ""],
        ["perplexity, quantized", f"{figures.quantized_perplexity:.4f}", "", ""],
        [
            "increase",
            f"{figures.increase:+.3%}",
            noise(figures.increase_error, ".3%"),
            f"{floor.increase:+.3%}" if floor else "",
        ],
        [
            "KL(source || quantized), nats",
            f"{figures.kl:.6f}",
            noise(figures.kl_error, ".6f"),
            f"{floor.kl:.6f}" if floor else "",
        ],
        [
            "same likeliest token",
            f"{figures.top1:.2%}",
            noise(figures.top1_error, ".2%"),
            f"{floor.top1:.2%}" if floor else "",
        ],
    ]


def noise(error: float | None, form: str) -> str:
    """A standard error."""
    return "one window: unknown" if error is None else f"± {error:{form}}"


def floor_line(floor: Floor) -> str:
    """The arithmetic floor in a sentence."""
    return (
        f"{floor.dtype} arithmetic alone: perplexity {floor.increase:+.3%}, KL {floor.kl:.2g}, "
        f"same likeliest token {floor.top1:.2%}"
    )
