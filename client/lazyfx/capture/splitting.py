"""Where to split a graph, by metadata of its capture: annotations and modules.

The server sees neither: they stay on the client with the rest of `node.meta`. So the split points
are determined here, and sent as node indices in the option `at` of the pass split_module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TypeAlias

from torch.fx import Node

from lazyfx.capture.capturing import Compilable, GraphCapturer
from lazyfx.errors import LazyfxError
from lazyfx.shared.pass_specs import PassSpec

Label: TypeAlias = Callable[[Node], Hashable]


def split_by(what: Compilable, label: str | Label) -> PassSpec:
    """A split_module pass that splits a graph where a label changes.

    Args:
        what: The GraphModule or ExportedProgram to compile; the pass is only valid for it.
        label: The name of an annotation from `torch.fx.traceback.annotate({name: value})`, or a
            function of a node, such as `in_modules` returns. A node whose label is None stays in
            the current part.

    Raises:
        LazyfxError: The label never changes, so there is nowhere to split.
    """
    label_of = _annotation(label) if isinstance(label, str) else label
    places: list[int] = []
    current: Hashable = None
    for place, node in enumerate(GraphCapturer().capture(what).module.graph.nodes):
        if not node.op.startswith("call_"):
            continue
        here = label_of(node)
        if here is not None and here != current:
            places.append(place)
            current = here
    if len(places) < 2:
        called = repr(label) if isinstance(label, str) else "the label"
        raise LazyfxError(
            f"{called} does not change along the graph, so there is nowhere to split it; captures "
            "of symbolic_trace have no annotations"
        )
    return PassSpec("split_module", MappingProxyType({"at": tuple(places)}))


def in_modules(*patterns: str) -> Label:
    """Label a node with the outermost of its modules that matches a pattern.

    Args:
        patterns: Paths of modules, with "*" for any part of a name: "layers.*",
            "*.encoder.layer.*". By default, the top-level modules.
    """

    def label(node: Node) -> Hashable:
        for path in _module_paths(node):
            depth = path.count(".")
            if not patterns and path and depth == 0:
                return path
            if any(p.count(".") == depth and fnmatchcase(path, p) for p in patterns):
                return path
        return None

    return label


def _annotation(name: str) -> Label:
    def label(node: Node) -> Hashable:
        custom = node.meta.get("custom")
        value = custom.get(name) if isinstance(custom, Mapping) else None
        return value if isinstance(value, Hashable) else repr(value)

    return label


# Dynamo writes paths as Python: L['self'].layers[0], L['self']._modules['layers'].
_STEPS = re.compile(r"\._modules\['([^']+)'\]|\['([^']+)'\]|\[(\d+)\]")


def _module_paths(node: Node) -> list[str]:
    """Paths of the modules that a node comes from, outermost first."""
    stack = node.meta.get("nn_module_stack")
    if not isinstance(stack, Mapping):
        return []
    paths = []
    for entry in stack.values():
        path = str(entry[0]).removeprefix("L['self']").lstrip(".")
        plain = _STEPS.sub(lambda m: "." + next(filter(None, m.groups())), path)
        paths.append(plain.lstrip("."))
    return paths
