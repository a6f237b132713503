"""What functions and methods are called with must fit their reviewed signatures."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pytest
import torch
from server.harness import connected, refused, request_of_body
from torch.fx import Graph, GraphModule

from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2 as pb
from lazyfx_server.security import allowed
from lazyfx_server.security.checked_graph import check
from lazyfx_server.security.signatures import read

if TYPE_CHECKING:
    from servers import RunningServer

FUNCTION, METHOD = pb.TARGET_KIND_FUNCTION, pb.TARGET_KIND_METHOD
HIGHER_ORDER = pb.TARGET_KIND_HIGHER_ORDER_OPERATOR


def argument(value: object, body: pb.GraphBody) -> pb.Argument:
    """An argument as it is on the wire."""
    if value is HOLE:
        return pb.Argument(operand=pb.Empty())
    if value is None:
        return pb.Argument(none=pb.Empty())
    if isinstance(value, list):
        return pb.Argument(list=pb.ArgumentList(items=[argument(v, body) for v in value]))
    if isinstance(value, dict):
        row = pb.Argument(dictionary=pb.Dictionary())
        for key, entry in value.items():
            row.dictionary.entries.add(key=argument(key, body), value=argument(entry, body))
        return row
    if isinstance(value, str):
        if value not in body.strings:
            body.strings.append(value)
        return pb.Argument(text=list(body.strings).index(value))
    kind = {bool: "boolean", int: "integer", float: "floating"}[type(value)]
    return pb.Argument(**{kind: value})


HOLE = object()


def body_of(kind: int, name: str, *args: object, **kwargs: object) -> bytes:
    """A graph that makes one call."""
    body = pb.GraphBody()
    body.targets.add(kind=kind, name=name)
    body.calls.add(opcode=pb.OPCODE_PLACEHOLDER)
    opcode = pb.OPCODE_CALL_METHOD if kind == METHOD else pb.OPCODE_CALL_FUNCTION
    call = body.calls.add(opcode=opcode, target=1)
    call.args.extend(argument(value, body) for value in args)
    for word, value in sorted(kwargs.items()):
        place = argument(word, body).text
        call.kwargs.add(name=place, value=argument(value, body))
    body.calls.add(opcode=pb.OPCODE_OUTPUT, args=[pb.Argument(operand=pb.Empty())])
    holes = str(call).count("operand")
    body.graphs.add(calls=[0, 1, 2], operands=[*[1] * holes, 1])
    return body.SerializeToString(deterministic=True)


X = HOLE
MISFITS: dict[str, tuple[Any, ...]] = {
    "text for a number": (FUNCTION, "torch.add", [X, "__import__('os')"], {}),
    "text in a list": (FUNCTION, "torch.stack", [[X, "evil"]], {}),
    "text for a tensor": (FUNCTION, "torch.nn.functional.relu", ["evil"], {}),
    "an unknown name": (FUNCTION, "torch.nn.functional.relu", [X], {"evil": 1}),
    "a name twice": (FUNCTION, "torch.nn.functional.relu", [X, True], {"inplace": True}),
    "too many": (FUNCTION, "torch.nn.functional.relu", [X, True, 1], {}),
    "too few": (FUNCTION, "torch.matmul", [X], {}),
    "a dictionary for sizes": (FUNCTION, "torch.zeros", [{"a": 1}], {}),
    "a word that is no device": (FUNCTION, "torch.zeros", [2], {"device": "cpu; import os"}),
    "an address to make a tensor of": (METHOD, "new", [X], {"cdata": 4096}),
    "data of a legacy constructor": (METHOD, "new", [X, [1, 2]], {}),
    "a method on text": (METHOD, "split", ["a b", 1], {}),
    "a method with text": (METHOD, "view", [X, "evil"], {}),
    "a method with a float for a size": (METHOD, "view", [X, 1.5], {}),
    "a method with an unknown name": (METHOD, "expand", [X, 1], {"evil": 1}),
    "a device of a method": (METHOD, "to", [X, "/dev/sda"], {}),
    "words added": (FUNCTION, "operator.add", ["a", "b"], {}),
    "a word repeated": (FUNCTION, "operator.mul", ["a", 1 << 40], {}),
    "a word formatted": (FUNCTION, "operator.mod", ["%1000000000d", 1], {}),
    "a word as a number": (FUNCTION, "builtins.int", ["9" * 4000], {}),
    "a word as numbers": (FUNCTION, "builtins.list", ["evil"], {}),
    "a text in mathematics": (FUNCTION, "math.sqrt", ["4"], {}),
    "a subgraph as text": (HIGHER_ORDER, "wrap", ["evil", X], {}),
    "options with source": (
        HIGHER_ORDER, "flex_attention", [X, X, X, X, [X], 1.0, {"BACKEND": "x)\nimport os"}], {}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_with_its_node(case: str) -> None:
    kind, name, args, kwargs = MISFITS[case]
    with pytest.raises(DecodeError, match=r"arguments of|give |takes") as refusal:
        check(body_of(kind, name, *args, **kwargs))
    assert refusal.value.node == 1


FITS: dict[str, tuple[Any, ...]] = {
    "a number": (FUNCTION, "torch.add", [X, 1], {"alpha": 2}),
    "a word where words are read": (FUNCTION, "torch.nn.functional.gelu", [X], {"approximate": "tanh"}),
    "NumPy's name": (FUNCTION, "torch.sum", [X], {"axis": 1, "keepdims": True}),
    "sizes one by one": (METHOD, "view", [X, 1, -1], {}),
    "sizes in a list": (METHOD, "expand", [X, [2, X]], {}),
    "a device": (METHOD, "to", [X, "cpu"], {}),
    "a key": (FUNCTION, "operator.getitem", [X, "last_hidden_state"], {}),
    "a comparison with a word": (FUNCTION, "operator.eq", [X, "cuda"], {}),
    "lists put together": (FUNCTION, "operator.add", [X, [1, 2]], {}),
    "a list of operands": (FUNCTION, "torch.cat", [[X, X], -1], {}),
    "an equation": (FUNCTION, "torch.einsum", ["ij,jk->ik", X, X], {}),
    "options": (HIGHER_ORDER, "flex_attention", [X, X, X, X, [X], 1.0, {"BACKEND": "AUTO"}], {}),
}  # fmt: skip


@pytest.mark.parametrize("case", FITS)
def test_what_fits_is_taken(case: str) -> None:
    kind, name, args, kwargs = FITS[case]
    check(body_of(kind, name, *args, **kwargs))


def test_a_leaf_module_is_not_called_with_text() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_module("linear", (x, "evil")))
    root = torch.nn.Module()
    root.linear = torch.nn.Linear(2, 2)
    with pytest.raises(DecodeError, match="must not pass text"):
        check(wire.encode(GraphModule(root, graph)).body)


def test_everything_that_has_no_schema_has_a_signature() -> None:
    found = json.loads(files(allowed).joinpath("signatures.json").read_text("utf-8"))
    signatures = allowed.resolved(found)
    table = allowed.reviewed()
    if table is None:
        pytest.skip("the table was reviewed for another torch; there all that torch has counts")
    for kind in ("functions", "methods", "higher_order"):
        missing = [name for name in table[kind] if not signatures[kind].get(name)]
        assert not missing, f"write them into security/signatures/reviewed.py: {missing}"
        for texts in signatures[kind].values():
            for text in texts:
                read(text)


def test_a_server_names_field_node_and_what_would_fit(server: RunningServer) -> None:
    with connected(server.address) as stub:
        body = body_of(FUNCTION, "torch.nn.functional.relu", "evil")
        refusal = refused(lambda: stub.Compile(request_of_body(body)))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "inplace: bool" in refusal.message
    assert "node" in refusal.message


@pytest.mark.parametrize("kind", [torch.nn.AdaptiveMaxPool2d, torch.nn.AdaptiveMaxPool3d])
def test_pooling_keeps_a_size_of_its_input(kind: type[torch.nn.Module]) -> None:
    dimensions = int(kind.__name__[-2])
    sizes = (None, 2, None)[:dimensions]
    graphs: list[GraphModule] = []

    def backend(module: GraphModule, _inputs: object) -> object:
        graphs.append(module)
        return module.forward

    inputs = torch.ones(1, 2, 4, 5, 6)[..., : 6 if dimensions == 3 else 1].squeeze(-1)
    torch._dynamo.reset()
    torch.compile(kind(sizes), backend=backend, fullgraph=True)(inputs)
    check(wire.encode(graphs[0]).body)
