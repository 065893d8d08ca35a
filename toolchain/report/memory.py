"""The memory of each rank of a plan as a picture: stacked bars, to scale, in one SVG file of its own."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from toolchain.plan.memory import human_bytes
from toolchain.report.plan import Alike, alike
from toolchain.report.svg import COLOURS

if TYPE_CHECKING:
    from toolchain.plan.plan import Plan
    from toolchain.plan.ranks import RankMemory

_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 920, 120, 30, 76, 46
_PARTS = ("embedding", "layers", "output layer", "activations", "runtime", "KV cache")
_STYLE = """
text{font:13px system-ui,sans-serif;fill:#222}.title{font-size:16px;font-weight:600}.small{font-size:11px}
.inside{font-size:11px;fill:#fff}.free{fill:#88888833;stroke:#888;stroke-width:1}.page{fill:#fff}
.limit{stroke:#888;stroke-dasharray:4 3}
@media (prefers-color-scheme:dark){text{fill:#ddd}.page{fill:#1b1b1b}.inside{fill:#fff}}
"""


def memory_svg(plan: Plan) -> str:
    """The picture. Ranks that are alike share a bar; without a known device the longest bar is the scale."""
    named = alike(plan.fit.ranks)
    needed = max(sum(_sizes(group.rank).values()) for group in named)
    capacity = plan.device.memory
    scale = (_WIDTH - _LEFT - _RIGHT) / max(needed, capacity or 0)
    total = human_bytes(capacity) if capacity else "memory not known"
    split = plan.resolved.parallelism
    title = (
        f"{plan.resolved.name}: {plan.resolved.quantization.method}, "
        f"tensor {split.tp_size} x pipeline {split.pp_size}"
    )
    drawn = [
        f'<text class="title" x="16" y="26">{escape(title)}</text>',
        f'<text x="16" y="46">each rank: {escape(plan.device.name)}, {total}</text>',
        *_legend(),
    ]
    for row, group in enumerate(named):
        drawn += _bar(group, _TOP + 8 + row * _ROW, scale)
    height = _TOP + 8 + len(named) * _ROW + 24
    if capacity:
        x = _LEFT + capacity * scale
        drawn += [
            f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height - 22}"/>',
            f'<text class="small" x="{x:.1f}" y="{height - 8}" text-anchor="end">{total}</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
        f'height="{height}" role="img"><style>{_STYLE}</style>'
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>{"".join(drawn)}</svg>\n'
    )


def _sizes(rank: RankMemory) -> dict[str, int]:
    """Bytes of each of `_PARTS`."""
    weights = rank.weights
    sizes = (
        weights.embedding,
        weights.layers,
        weights.head,
        rank.activations,
        rank.runtime,
        rank.cache,
    )
    return dict(zip(_PARTS, sizes, strict=True))


def _bar(group: Alike, top: int, scale: float) -> list[str]:
    name, layers, rank = group
    drawn = [
        f'<text x="{_LEFT - 10}" y="{top + 14}" text-anchor="end">{name}</text>',
        f'<text class="small" x="{_LEFT - 10}" y="{top + 28}" text-anchor="end">{layers}</text>',
    ]
    left = float(_LEFT)
    for number, (part, size) in enumerate(_sizes(rank).items()):
        wide = size * scale
        if not size:
            continue
        said = f"{part}: {human_bytes(size)}"
        drawn.append(
            f'<rect x="{left:.1f}" y="{top}" width="{wide:.1f}" height="32" fill="{COLOURS[number]}">'
            f"<title>{escape(said)}</title></rect>"
        )
        if wide > 7 * len(human_bytes(size)) + 8:
            drawn.append(f'<text class="inside" x="{left + 5:.1f}" y="{top + 20}">{human_bytes(size)}</text>')
        left += wide
    if rank.unused > 0:
        wide = rank.unused * scale
        drawn.append(
            f'<rect class="free" x="{left:.1f}" y="{top}" width="{wide:.1f}" height="32">'
            f"<title>unused: {human_bytes(rank.unused)}</title></rect>"
        )
    return drawn


def _legend() -> list[str]:
    drawn, x = [], 16.0
    for number, part in enumerate((*_PARTS, "unused")):
        fill = f'fill="{COLOURS[number]}"' if number < len(_PARTS) else 'class="free"'
        drawn.append(
            f'<rect x="{x:.0f}" y="56" width="12" height="12" {fill}/>'
            f'<text class="small" x="{x + 17:.0f}" y="66">{part}</text>'
        )
        x += 34 + 6.4 * len(part)
    return drawn
