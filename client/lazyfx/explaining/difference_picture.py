"""Draws two graphs side by side, with differences in colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from lazyfx.explaining.comparing import ComparedGraph, Difference
from lazyfx.shared.picture import Picture

_WIDTH, _HEIGHT, _GAP, _MARGIN = 300, 40, 10, 24
_MIDDLE = 60
_NOTES = 420
_COLORS = {"same": "#f6f8fa", "changed": "#fdeecb", "added": "#d7ecd9", "removed": "#f9dce6"}
# Number of nodes drawn around one that differs, and the maximum rows in total.
_CONTEXT = 2
_MAX_ROWS = 150
_MAX_NOTES = 3
_STYLE = (
    "text{font:11px ui-monospace,monospace;fill:#1b1f24}"
    ".s{font-size:9px;fill:#57606a}"
    ".h{font-weight:bold}"
    "rect{stroke:#8c959f;rx:6}"
    "path{fill:none;stroke:#8c959f;stroke-width:1}"
)


def draw(graphs: Sequence[ComparedGraph], titles: tuple[str, str], note: str) -> Picture:
    """Draw the nodes that differ and their neighbours, pair by pair, as SVG.

    Each row has a pair of aligned nodes, with its differences next to it. Equal runs are omitted
    and counted.
    """
    rows = list(_rows(graphs))
    left_out = max(0, len(rows) - _MAX_ROWS)
    rows = rows[:_MAX_ROWS]
    if left_out:
        rows.append([f'<text x="{_MARGIN}" y="25" class="s">… {left_out} more rows</text>'])
    parts = [
        _text(_MARGIN, _MARGIN, titles[0], "h"),
        _text(_MARGIN + _WIDTH + _MIDDLE, _MARGIN, titles[1], "h"),
        _text(_MARGIN + 2 * _WIDTH + _MIDDLE + 16, _MARGIN, note, "s"),
    ]
    y = _MARGIN + 16
    for row in rows:
        parts.append(f'<g transform="translate(0 {y})">{"".join(row)}</g>')
        y += _HEIGHT + _GAP
    width = 2 * _MARGIN + 2 * _WIDTH + _MIDDLE + _NOTES
    height = y + _MARGIN
    return Picture(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">'
        f"<title>{escape(note)}</title><style>{_STYLE}</style>"
        '<rect width="100%" height="100%" fill="#ffffff" style="stroke:none"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _rows(graphs: Sequence[ComparedGraph]) -> Iterator[list[str]]:
    for graph in graphs:
        if graph.path:
            yield [_text(_MARGIN, 25, f"in the nested graph {graph.path}", "h")]
        near = _near(graph)
        skipped = 0
        for place, pair in enumerate(graph.pairs):
            if place not in near:
                skipped += 1
                continue
            if skipped:
                yield [_text(_MARGIN, 25, f"… {skipped} equal nodes", "s")]
                skipped = 0
            yield list(_pair(graph, pair, graph.differences[place]))
        if skipped:
            yield [_text(_MARGIN, 25, f"… {skipped} equal nodes", "s")]


def _near(graph: ComparedGraph) -> set[int]:
    """Positions of pairs that differ, and of those around them."""
    return {
        place + step
        for place, differences in enumerate(graph.differences)
        if differences
        for step in range(-_CONTEXT, _CONTEXT + 1)
    }


def _pair(
    graph: ComparedGraph, pair: tuple[int | None, int | None], differences: list[Difference]
) -> Iterator[str]:
    kind = differences[0].kind if differences else "same"
    right = _MARGIN + _WIDTH + _MIDDLE
    i, j = pair
    if i is not None:
        yield _box(_MARGIN, graph.first[i].name, graph.first[i].summary(), _COLORS[kind])
    if j is not None:
        yield _box(right, graph.second[j].name, graph.second[j].summary(), _COLORS[kind])
    if i is not None and j is not None:
        yield f'<path d="M{_MARGIN + _WIDTH} 20L{right} 20"/>'
    notes = [_note(difference) for difference in differences[:_MAX_NOTES]]
    if len(differences) > _MAX_NOTES:
        notes[-1] = f"… and {len(differences) - _MAX_NOTES + 1} more fields"
    for place, text in enumerate(notes):
        yield _text(right + _WIDTH + 16, 12 + 12 * place, text, "s", 85)


def _note(difference: Difference) -> str:
    if difference.kind != "changed":
        return f"only in the {'second' if difference.kind == 'added' else 'first'} graph"
    return f"{difference.field}: {difference.before} → {difference.after}"


def _box(x: int, name: str, summary: str, color: str) -> str:
    return (
        f'<g transform="translate({x} 0)"><title>{escape(f"{name} = {summary}")}</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="{color}"/>'
        + _text(8, 16, name, "", 42)
        + _text(8, 31, summary, "s", 52)
        + "</g>"
    )


def _text(x: int, y: int, text: str, style: str, most: int = 100) -> str:
    short = text if len(text) <= most else text[: most - 1] + "…"
    return f'<text x="{x}" y="{y}" class="{style}">{escape(short)}</text>'
