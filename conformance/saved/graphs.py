"""The graphs that are saved, by the names of their cases."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

import zoo
from conformance.captures import captured
from conformance.cases import Case, modules, operators
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from zoo.captures import WAYS as ZOO_WAYS

# Of conformance.captures.WAYS.
OPERATOR_WAYS = ("make_fx", "export", "dynamo")


@dataclass(frozen=True)
class Saveable:
    """A graph as a client rebuilds it, and a call of it.

    Attributes:
        label: Which graph of its case it is.
        build: Builds the graph; None if torch captures none, or the wire format refuses it.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        note: Why there is no graph.
    """

    label: str
    build: Callable[[], GraphModule] | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    note: str = ""


def every_name() -> list[str]:
    """The cases: `op abs`, `module Linear`, `zoo gpt2 dynamo`."""
    return [
        *(case.name for case in (*operators(), *modules())),
        *(f"zoo {name} {way}" for name in zoo.ARCHITECTURES for way in ZOO_WAYS),
    ]


def graphs(name: str, ways: Collection[str] = OPERATOR_WAYS) -> Iterator[Saveable]:
    """The graphs of a case.

    Args:
        name: Of `every_name`.
        ways: How operators and modules are captured.
    """
    if name.startswith("zoo "):
        yield from _of_zoo(*name.split()[1:])
        return
    for number, call in enumerate(_cases()[name].calls()):
        for way in ways:
            found, label = captured(way, call), f"{way} {number}"
            if found is None:
                yield Saveable(label, note="no capture")
            else:
                yield _sent(label, found.module, tuple(found.inputs), {})


@functools.cache
def _cases() -> dict[str, Case]:
    return {case.name: case for case in (*operators(), *modules())}


def _of_zoo(name: str, way: str) -> Iterator[Saveable]:
    try:
        found = ZOO_WAYS[way](*zoo.ARCHITECTURES[name].build())
    except Exception as error:  # noqa: BLE001 - captures raise errors of every kind
        yield Saveable(way, note=f"no capture: {type(error).__name__}")
        return
    for number, each in enumerate(found):
        label = f"{way} {number} {each.label}"
        yield _sent(label, each.module, tuple(each.args), dict(each.kwargs))


def _sent(
    label: str, module: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Saveable:
    try:
        wire.encode(module)
    except UnsupportedGraphError as error:
        return Saveable(label, note=f"not sent: {error}")
    return Saveable(label, functools.partial(_rebuilt, module), args, kwargs)


def _rebuilt(module: GraphModule) -> GraphModule:
    """As a client rebuilds it of graph data, with the convention by which it is called."""
    encoded = wire.encode(module)

    def bind(graph: int, attribute: int, _row: Any) -> torch.Tensor:
        return encoded.attributes[graph][attribute]  # type: ignore[return-value]

    def convention(root: torch.fx.Graph) -> None:
        root.set_codegen(copy.copy(module.graph._codegen))

    return wire.decode(encoded.body, encoded.presentation, bind=bind, on_root=convention)
