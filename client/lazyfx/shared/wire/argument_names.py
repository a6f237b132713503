"""The parameter names in generated code for a graph of torch.export."""

from __future__ import annotations

from torch.fx import Graph
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from lazyfx.errors import DecodeError
from lazyfx.shared.wire import names
from lazyfx.v1 import graph_pb2 as pb


def apply_signature(graph: Graph, signature: pb.PytreeSignature) -> None:
    """Give the code of a flat graph the parameters of its caller's forward.

    The pytrees themselves stay with the caller, so the code is for reading and for building a
    module around it; each argument counts as one leaf here.

    Raises:
        DecodeError: A name is not a valid argument name, or the count is wrong.
    """
    arguments = list(signature.argument_names)
    for name in arguments:
        names.check_identifier(name, "presentation.signature.argument_names")
    if len(set(arguments)) != len(arguments) or signature.positional_count > len(arguments):
        raise DecodeError("names or count are wrong", field="presentation.signature")
    positional = arguments[: signature.positional_count]
    keywords = arguments[signature.positional_count :]
    leaf = pytree.treespec_leaf
    in_spec = pytree.TreeSpec(
        tuple,
        None,
        [
            pytree.TreeSpec(tuple, None, [leaf() for _ in positional]),
            pytree.TreeSpec(dict, keywords, [leaf() for _ in keywords]),
        ],
    )
    out_spec = pytree.TreeSpec(list, None, [leaf()])
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(arguments, in_spec, out_spec)))
