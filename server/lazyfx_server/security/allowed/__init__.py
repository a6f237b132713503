"""The reviewed table of allowed call targets, as data; `python -m` this package diffs it.

`client/lazyfx/shared/wire/targets/allow_table.py` finds callables by rules over torch's own
registries. What those rules find in a new torch is not trusted: the names of each reviewed torch
are committed here, and on that torch the server accepts no others. `make targets` regenerates the
table, for review of its diff. `signatures.json` has the signatures of targets without a schema:
functions, methods and higher-order operators.

Operators of other libraries are not in the table: they exist only because the server's operator
installed and imported the library that registers them.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import torch

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.canonical.places import refused_target
from lazyfx.shared.wire.targets import allow_table, target_lists
from lazyfx.shared.wire.targets.operator_schemas import operator_of_row
from lazyfx.shared.wire.targets.user_targets import UserTargets, install
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.signatures import collecting, read

VARIABLE = "LAZYFX_ALLOWED_BESIDES"
"""Environment variable that passes the file of user targets to a fork server."""

_TARGETS, _SIGNATURES = "targets.json", "signatures.json"
_NAMED: dict[int, str] = {
    graph_pb2.TARGET_KIND_FUNCTION: "functions",
    graph_pb2.TARGET_KIND_METHOD: "methods",
    graph_pb2.TARGET_KIND_OPERATOR: "operators",
    graph_pb2.TARGET_KIND_OPERATOR_PACKET: "packets",
    graph_pb2.TARGET_KIND_HIGHER_ORDER_OPERATOR: "higher_order",
}


def collect() -> dict[str, list[str]]:
    """Collect the targets that the rules find in this process's torch."""
    importlib.import_module("torch._dynamo")  # registers the higher-order operators
    importlib.import_module("torch._inductor.inductor_prims")  # and this registers prims::fma
    allow_table.register_late()
    operators, packets = set(), set()
    for schema in torch._C._jit_get_all_schemas():  # noqa: SLF001 - torch's registry of operators
        overload = f"{schema.name}.{schema.overload_name or 'default'}"
        if _is_found(graph_pb2.TARGET_KIND_OPERATOR, overload):
            operators.add(overload)
            if _is_found(graph_pb2.TARGET_KIND_OPERATOR_PACKET, schema.name):
                packets.add(schema.name)
    higher = torch._ops._higher_order_ops  # noqa: SLF001 - torch's registry of operators
    kind = graph_pb2.TARGET_KIND_HIGHER_ORDER_OPERATOR
    return {
        "functions": sorted(allow_table.functions()),
        "methods": sorted(allow_table.methods()),
        "attributes": sorted(target_lists.ATTRIBUTES),
        "operators": sorted(operators),
        "packets": sorted(packets),
        "higher_order": sorted(name for name in higher if _is_found(kind, name)),
    }


def collect_signatures(table: Mapping[str, Iterable[str]]) -> dict[str, dict[str, list[str]]]:
    """Collect the signatures that this process's torch has for the names of a table."""
    return {kind: find(table[kind]) for kind, find in _COLLECTED.items()}


_COLLECTED = {
    "functions": collecting.functions,
    "methods": collecting.methods,
    "higher_order": collecting.higher_order,
}


def _is_found(kind: int, name: str) -> bool:
    try:
        allow_table.find(kind, name)
    except (DecodeError, RuntimeError):
        return False
    return True


@functools.lru_cache(maxsize=1)
def reviewed() -> dict[str, frozenset[str]] | None:
    """The committed table, or None if it is of another torch release.

    In that case the rules alone decide: exact names of torch's registries, without review.
    """
    table = _read(_TARGETS)
    if table.pop("torch") != _release():
        return None
    found = {kind: frozenset(names) for kind, names in table.items()}
    if _user_targets:
        found["functions"] |= _user_targets[0].functions.keys()
        found["methods"] |= _user_targets[0].methods
    return found


# Targets added by the operator of this server; set when a process starts.
_user_targets: list[UserTargets] = []


def allow_user_targets(user_targets: UserTargets) -> None:
    """Allow additional targets in this process.

    Raises:
        ValueError: A signature cannot be parsed; names it.
    """
    for name, text in user_targets.signatures.items():
        try:
            read(text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    install(user_targets)
    _user_targets[:] = [user_targets]
    for table in (reviewed, _signatures, _namespaces):
        table.cache_clear()


def user_target_names() -> Sequence[str]:
    """The added names, followed by a digest of them all; empty if there are none."""
    if not _user_targets:
        return ()
    digest = hashlib.sha256(_user_targets[0].text.encode()).hexdigest()
    return (*sorted(_user_targets[0].signatures), digest)


def _read(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(__package__).joinpath(file).read_text("utf-8"))
    return found


def signatures(kind: int, name: str) -> Sequence[str]:
    """The signatures of a target as text, one per overload.

    Raises:
        DecodeError: It has no reviewed signature.
    """
    found = _signatures()[_NAMED[kind]].get(name)
    if not found:
        raise DecodeError(
            f"{name[:200]!r} has no signature in the reviewed table; ask the server's operator "
            "to review it (make targets)"
        )
    return found


@functools.lru_cache(maxsize=1)
def _signatures() -> dict[str, dict[str, list[str]]]:
    """The committed signatures, or this torch's own if they are of another release."""
    known = reviewed() is not None
    found = resolved(_read(_SIGNATURES)) if known else collect_signatures(collect())
    for user_targets in _user_targets:
        found["functions"] |= {
            name: [user_targets.signatures[name]] for name in user_targets.functions
        }
        found["methods"] |= {name: [user_targets.signatures[name]] for name in user_targets.methods}
    return found


def shortened(found: Mapping[str, Mapping[str, list[str]]]) -> dict[str, dict[str, Any]]:
    """Signatures for a file: a target whose signature repeats another's refers to that one."""
    table: dict[str, dict[str, Any]] = {}
    for kind, rows in found.items():
        first: dict[tuple[str, ...], str] = {}
        table[kind] = {}
        for name, texts in rows.items():
            same = first.setdefault(tuple(texts), name)
            table[kind][name] = texts if same == name else same
    return table


def resolved(table: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[str]]]:
    """Resolve the references in a file of signatures."""
    return {
        kind: {name: rows[row] if isinstance(row, str) else row for name, row in rows.items()}
        for kind, rows in table.items()
    }


def _release() -> str:
    return ".".join(torch.__version__.split(".")[:2])


def check_reviewed(body: graph_pb2.GraphBody) -> None:
    """Check that every target of a graph is in the reviewed table.

    Raises:
        DecodeError: One is not; the error names it and the node.
    """
    table = reviewed()
    if table is None:
        return
    for i, target in enumerate(body.targets):
        kind = _NAMED.get(target.kind)
        if kind is None or target.name in table[kind] or _is_foreign(target, table):
            continue
        raise refused_target(
            f"{target.name[:200]!r} is not in the reviewed table of targets of torch "
            f"{_release()}; ask the server's operator to review it (make targets)",
            body,
            i,
        )


def _is_foreign(target: graph_pb2.Target, table: Mapping[str, frozenset[str]]) -> bool:
    """Whether it is an operator of another library, which the server's operator installed."""
    operator = operator_of_row(target)
    return operator is not None and operator.namespace not in _namespaces(table["packets"])


@functools.lru_cache(maxsize=1)
def _namespaces(packets: frozenset[str]) -> frozenset[str]:
    """Namespaces of the operators that torch itself registers."""
    return frozenset(name.partition("::")[0] for name in packets)
