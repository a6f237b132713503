"""The reviewed table of what graphs may call, as data; `python -m` this package diffs it.

`client/lazyfx/wire/targets.py` finds callables by rules over torch's own registries. What those
rules find in a new torch is not taken on trust: the names of a torch that has been looked at are
committed here, and on that torch the server takes no other. `make targets` writes the table
again; its diff is what there is to review.

Operators of other libraries are not in the table: they are there because the operator of the
server installed and imported what registers them.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping
from importlib.resources import files

import torch

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2
from lazyfx.wire import target_lists, targets
from lazyfx_server.security.places import first_use

_FILE = "targets.json"
_NAMED = {
    graph_pb2.TARGET_KIND_FUNCTION: "functions",
    graph_pb2.TARGET_KIND_METHOD: "methods",
    graph_pb2.TARGET_KIND_OPERATOR: "operators",
    graph_pb2.TARGET_KIND_OPERATOR_PACKET: "packets",
    graph_pb2.TARGET_KIND_HIGHER_ORDER_OPERATOR: "higher_order",
}


def collect() -> dict[str, list[str]]:
    """What the rules find in this process's torch."""
    importlib.import_module("torch._dynamo")  # registers the higher-order operators
    operators, packets = set(), set()
    for schema in torch._C._jit_get_all_schemas():  # noqa: SLF001 - torch's registry of operators
        overload = f"{schema.name}.{schema.overload_name or 'default'}"
        if _is_found(graph_pb2.TARGET_KIND_OPERATOR, overload):
            operators.add(overload)
            packets.add(schema.name)
    higher = torch._ops._higher_order_ops  # noqa: SLF001 - torch's registry of operators
    kind = graph_pb2.TARGET_KIND_HIGHER_ORDER_OPERATOR
    return {
        "functions": sorted(targets.functions()),
        "methods": sorted(targets.methods()),
        "attributes": sorted(target_lists.ATTRIBUTES),
        "operators": sorted(operators),
        "packets": sorted(packets),
        "higher_order": sorted(name for name in higher if _is_found(kind, name)),
    }


def _is_found(kind: int, name: str) -> bool:
    try:
        targets.find(kind, name)
    except (DecodeError, RuntimeError):
        return False
    return True


@functools.lru_cache(maxsize=1)
def reviewed() -> dict[str, frozenset[str]] | None:
    """The committed table, or None when it was made for another torch.

    Then the rules alone decide: exact names of torch's registries, nobody's review.
    """
    table = json.loads(files(__package__).joinpath(_FILE).read_text("utf-8"))
    if table.pop("torch") != _release():
        return None
    return {kind: frozenset(names) for kind, names in table.items()}


def _release() -> str:
    return ".".join(torch.__version__.split(".")[:2])


def check_reviewed(body: graph_pb2.GraphBody) -> None:
    """Check that every target of a graph is in the reviewed table.

    Raises:
        DecodeError: One is not; names it and the node.
    """
    table = reviewed()
    if table is None:
        return
    for i, target in enumerate(body.targets):
        kind = _NAMED.get(target.kind)
        if kind is None or target.name in table[kind] or _is_foreign(kind, target.name, table):
            continue
        field, node = first_use(body, i)
        raise DecodeError(
            f"{target.name[:200]!r} is not in the reviewed table of targets of torch "
            f"{_release()}; ask the server's operator to review it (make targets)",
            field=field,
            node=node,
        )


def _is_foreign(kind: str, name: str, table: Mapping[str, frozenset[str]]) -> bool:
    """Whether the operator of the server brought it: an operator of another library."""
    return kind in ("operators", "packets") and name.partition("::")[0] not in _namespaces(
        table["packets"]
    )


@functools.lru_cache(maxsize=1)
def _namespaces(packets: frozenset[str]) -> frozenset[str]:
    """Namespaces of the operators that torch itself registers."""
    return frozenset(name.partition("::")[0] for name in packets)
