"""Hostile cases of structure: paths, metadata, arguments, state."""

from __future__ import annotations

from typing import Any

import torch
from harness import (
    DCE,
    artifact,
    compile_request,
    connected,
    request_of_body,
)
from raw_graphs import RawGraph
from sending import (
    FUNCTION,
    OPERATOR,
    must_refuse_graph,
    returning,
    small,
)
from watching import Watched

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2


def paths_in_each_others_way(watched: Watched, case: Any) -> None:
    graph = small()
    for path in case["payload"]["attrs"]:
        graph.node("get_attr", attribute=graph.tensor_attribute(path))
    must_refuse_graph(watched, returning(graph, 1))


def paths_into_a_modules_insides(watched: Watched, case: Any) -> None:
    for path in (*case["payload"]["attrs"], "training", "forward", "a.training", "a._modules.x"):
        graph = small()
        graph.node("get_attr", attribute=graph.tensor_attribute(path))
        must_refuse_graph(watched, returning(graph, 1))


def lying_metadata(watched: Watched, case: Any) -> None:
    graph = RawGraph()
    honest = graph.tensor(shape=[2])
    graph.body.values.add(tensor=honest)
    graph.node("placeholder", name="x", value=0)
    lie = graph.tensor(shape=[7])
    graph.body.values.add(tensor=lie)
    graph.node(
        "call_function", target=(OPERATOR, "aten::add.Tensor"),
        args=[{"$node": 0}, {"$node": 0}], value=1,
    )  # fmt: skip
    returning(graph, 1)
    # What a caller says of its own graph is in its own key; asked to recompute, nothing is trusted.
    request = request_of_body(graph.serialized(), graph.names, "shape_propagation")
    request.passes[0].options.add(name="recompute", value=pb.OptionValue(boolean=True))
    outcome = watched.send(request)
    assert isinstance(outcome, pb.CompileResponse), outcome
    with connected(watched.server.address) as stub:
        data = artifact(stub, outcome.module_key, pb.ARTIFACT_KIND_GRAPH).data
    body = graph_pb2.GraphBody.FromString(graph_pb2.CompiledGraph.FromString(data).graph.body)
    assert [list(t.shape) for t in body.tensors] == [[2]]


def argument_without_a_kind(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node("call_function", target=(FUNCTION, "torch.neg"), args=[graph_pb2.Argument()])
    must_refuse_graph(watched, returning(graph, 1))


def mutation_is_kept(watched: Watched, case: Any) -> None:
    """Writing in place is fine; what is wrong is to lose it."""
    graph = small()
    target = (OPERATOR, "aten::add_.Tensor")
    for _ in range(2):
        graph.node("call_function", target=target, args=[{"$node": 0}, 1])
    outcome = watched.ask(
        returning(graph).serialized(), graph.names, DCE, "common_subexpression_elimination"
    )
    assert isinstance(outcome, pb.CompileResponse), outcome
    assert outcome.report.nodes_after == 4


def training_state(watched: Watched, case: Any) -> None:
    """A batch norm in training mode keeps its state: passes never run it."""
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    request = compile_request(torch.fx.symbolic_trace(model), "shape_propagation", "constant_fold")
    outcome = watched.send(request)
    is_refused = isinstance(outcome, pb.CompileResponse) or (
        outcome.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    )
    assert is_refused, outcome
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
