"""A small chart as SVG: lines over logarithmic axes, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT, MARGIN = 420, 320, 56
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df")


@dataclass
class Panel:
    """One pair of axes.

    Attributes:
        title: Shown above it.
        across: Label of the horizontal axis.
        lines: Points of each line, by its label; all numbers are positive.
    """

    title: str
    across: str
    lines: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def svg(panels: Sequence[Panel], note: str) -> str:
    """The panels in one picture, with a note below them."""
    width = WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 24}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{HEIGHT + 24}" fill="#ffffff"/>',
    ]
    for number, panel in enumerate(panels):
        parts.append(f'<g transform="translate({number * WIDTH} 0)">{_panel(panel)}</g>')
    parts.append(f'<text x="{MARGIN}" y="{HEIGHT + 14}" fill="#57606a">{note}</text></svg>')
    return "\n".join(parts) + "\n"


def _panel(panel: Panel) -> str:
    points = [point for line in panel.lines.values() for point in line]
    left, right = _decades([x for x, _ in points])
    low, high = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return (
            MARGIN + across * (WIDTH - 2 * MARGIN + 40),
            HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN),
        )

    parts = [f'<text x="{MARGIN}" y="24" font-weight="bold">{panel.title}</text>']
    for decade in range(left, right + 1):
        x, y = place(10**decade, 10**low)
        parts.append(_rule(x, y, x, place(1, 10**high)[1]))
        parts.append(f'<text x="{x:.0f}" y="{y + 16:.0f}" text-anchor="middle">'
                     f"{_label(decade)}</text>")  # fmt: skip
    for decade in range(low, high + 1):
        x, y = place(10**left, 10**decade)
        parts.append(_rule(x, y, place(10**right, 1)[0], y))
        parts.append(f'<text x="{x - 6:.0f}" y="{y + 4:.0f}" text-anchor="end">'
                     f"{_label(decade)}</text>")  # fmt: skip
    middle = place(10 ** ((left + right) / 2), 10**low)[0]
    parts.append(
        f'<text x="{middle:.0f}" y="{HEIGHT - 18}" text-anchor="middle">{panel.across}</text>'
    )
    for (label, line), colour in zip(panel.lines.items(), COLOURS, strict=False):
        places = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        row = 40 + 16 * list(panel.lines).index(label)
        parts.append(f'<text x="{MARGIN + 10}" y="{row}" fill="{colour}">{label}</text>')
    return "\n".join(parts)


def _rule(x: float, y: float, to_x: float, to_y: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" stroke="#d8dee4"/>'


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values)) - 1e-9))


def _label(decade: int) -> str:
    return f"{10**decade:,}" if decade >= 0 else f"{10.0**decade:g}"
