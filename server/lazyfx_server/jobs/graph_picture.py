"""Draws a graph as SVG, in layers from inputs to output, without a browser or layout program."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

from torch.fx import GraphModule, Node

from lazyfx.shared import wire
from lazyfx.shared.picture import STYLE
from lazyfx.v1 import graph_pb2

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 190, 40, 24, 34, 24
_COLORS = {
    "placeholder": "#d7ecd9",
    "get_attr": "#fdeecb",
    "call_function": "#dbe7fb",
    "call_method": "#e4defa",
    "call_module": "#f9dce6",
    "output": "#e2e2e2",
}
# Sweeps that order the nodes of a layer by the positions of their neighbours.
_SWEEPS = 4


@dataclass(frozen=True, slots=True)
class _Box:
    """The box of a node: its top left corner."""

    x: float
    y: float


def draw(module: GraphModule) -> str:
    """Draw a graph as SVG text.

    A node's layer is its longest path from an input; its colour is its opcode. It shows its name,
    its target, and shape and dtype if known. Unused get_attr nodes and placeholders are drawn too:
    they are part of the graph.
    """
    nodes = list(module.graph.nodes)
    layers = _layers(nodes)
    boxes = _place(layers)
    width = max((box.x for box in boxes.values()), default=0) + _WIDTH + _MARGIN
    height = max((box.y for box in boxes.values()), default=0) + _HEIGHT + _MARGIN
    edges = [
        _edge(boxes[operand], boxes[node]) for node in nodes for operand in node.all_input_nodes
    ]
    shapes = [_node(node, boxes[node]) for node in nodes]
    return "".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" role="img">',
            f"<title>{len(nodes)} nodes</title><style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="#ffffff" style="stroke:none"/>',
            *edges,
            *shapes,
            "</svg>\n",
        ]
    )


def _layers(nodes: list[Node]) -> list[list[Node]]:
    import networkx as nx  # imported here, because the server itself never draws

    graph = nx.DiGraph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((operand, node) for node in nodes for operand in node.all_input_nodes)
    depths: dict[Node, int] = {}
    for depth, generation in enumerate(nx.topological_generations(graph)):
        depths.update(dict.fromkeys(generation, depth))
    for node in reversed(nodes):
        # A parameter belongs next to the call that reads it, not in the first row.
        if node.op in ("get_attr", "placeholder") and node.users:
            depths[node] = min(depths[user] for user in node.users) - 1
    layers: list[list[Node]] = [[] for _ in range(max(depths.values(), default=-1) + 1)]
    for node in nodes:
        layers[depths[node]].append(node)
    _order(layers)
    return layers


def _order(layers: list[list[Node]]) -> None:
    """Move nodes of a layer towards the middle of their neighbours, which uncrosses edges."""
    place = {node: float(i) for layer in layers for i, node in enumerate(layer)}

    def middle(node: Node, neighbours: list[Node]) -> float:
        return sum(place[n] for n in neighbours) / len(neighbours) if neighbours else place[node]

    for sweep in range(_SWEEPS):
        downwards = sweep % 2 == 0
        for layer in layers if downwards else reversed(layers):
            layer.sort(key=lambda n: middle(n, n.all_input_nodes if downwards else list(n.users)))
            for i, node in enumerate(layer):
                place[node] = i - len(layer) / 2


def _place(layers: list[list[Node]]) -> dict[Node, _Box]:
    widest = max((len(layer) for layer in layers), default=0) * (_WIDTH + _GAP_X)
    boxes = {}
    for row, layer in enumerate(layers):
        left = _MARGIN + (widest - len(layer) * (_WIDTH + _GAP_X)) / 2
        for i, node in enumerate(layer):
            boxes[node] = _Box(left + i * (_WIDTH + _GAP_X), _MARGIN + row * (_HEIGHT + _GAP_Y))
    return boxes


def _edge(start: _Box, end: _Box) -> str:
    x1, y1 = start.x + _WIDTH / 2, start.y + _HEIGHT
    x2, y2 = end.x + _WIDTH / 2, end.y
    bend = max(12.0, (y2 - y1) / 2)
    return (
        f'<path d="M{x1:.0f} {y1:.0f}C{x1:.0f} {y1 + bend:.0f} '
        f'{x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2:.0f}"/>'
    )


def _node(node: Node, box: _Box) -> str:
    target, value = _target(node), _value(node)
    second = " · ".join(part for part in (target, value) if part)
    full = escape(f"{node.name} = {node.op} {target} {value}".rstrip())
    color = _COLORS.get(node.op, "#ffffff")
    return (
        f'<g transform="translate({box.x:.0f} {box.y:.0f})"><title>{full}</title>'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="{color}"/>'
        f'<text x="8" y="16">{escape(_short(node.name, 25))}</text>'
        f'<text x="8" y="31" class="s">{escape(_short(second, 31))}</text></g>'
    )


def _target(node: Node) -> str:
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", type(node.target).__name__))
    return "" if node.op in ("placeholder", "output") else str(node.target)


def _value(node: Node) -> str:
    """Shape and dtype of a tensor, "8x128x768 float32"; nothing for other values."""
    lazy = node.meta.get(wire.META_KEY)
    if not isinstance(lazy, wire.LazyValue):
        return ""
    body = lazy.tables.body
    row = body.values[lazy.index]
    if row.WhichOneof("kind") != "tensor":
        return ""
    tensor = body.tensors[row.tensor]
    sizes = ["?"] * len(tensor.symbolic_shape) or [str(size) for size in tensor.shape]
    dtype = graph_pb2.Dtype.Name(tensor.dtype).removeprefix("DTYPE_").lower()
    return f"{'x'.join(sizes) or 'scalar'} {dtype}"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
