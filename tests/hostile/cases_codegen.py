"""Hostile cases of generated source, and of what folding would run."""

from __future__ import annotations

from typing import Any

from harness import (
    Refusal,
    artifact,
    connected,
)
from raw_graphs import expanded
from sending import (
    FUNCTION,
    OPERATOR,
    must_refuse_graph,
    returning,
    small,
    unsayable,
)
from watching import Watched

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2


def hostile_target(watched: Watched, case: Any) -> None:
    graph = small()
    name = expanded(case["payload"]["value"], {"MARKER": str(watched.marker)})
    graph.node("call_function", target=(FUNCTION, name), args=[{"$node": 0}])
    must_refuse_graph(watched, returning(graph, 1), "shape_propagation")


def hostile_argument_names(watched: Watched, case: Any) -> None:
    graph = returning(small())
    value = expanded(case["payload"]["value"], {"MARKER": str(watched.marker)})
    graph.names.signature.argument_names.extend(["x", *value["in_spec_kwargs"]])
    graph.names.signature.positional_count = 1
    must_refuse_graph(watched, graph)


def hostile_tree_spec(watched: Watched, case: Any) -> None:
    graph = small()
    spec = graph_pb2.TreeSpec(kind=99)  # type: ignore[arg-type]
    graph.node("get_attr", attribute=graph.attribute("s", graph_pb2.Attribute(tree_spec=spec)))
    must_refuse_graph(watched, returning(graph, 1))
    unsayable(watched, case)


def hostile_child_name(watched: Watched, case: Any) -> None:
    graph = small()
    path = expanded(case["payload"]["value"], {"MARKER": str(watched.marker)})
    graph.node("get_attr", attribute=graph.tensor_attribute(path))
    must_refuse_graph(watched, returning(graph, 1))


def hostile_device(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node(
        "call_method",
        target=(graph_pb2.TARGET_KIND_METHOD, "to"),
        args=[{"$node": 0}, graph_pb2.Argument(device=graph.device(20))],
    )
    must_refuse_graph(watched, returning(graph, 1))


# --- memory: what constant folding would run ----------------------------------------------


def full(shape: list[int], value: float) -> tuple[str, list[Any]]:
    return "aten::full.default", [shape, value]


FOLDED: dict[str, list[tuple[str, list[Any]]]] = {
    "memory-003": [
        full([1, 1, 2, 2, 2], 1.0),
        ("aten::full.default", [[1, 1, 2, 2, 2], 2**40]),
        (
            "aten::max_pool3d_with_indices_backward.default",
            [
                {"$node": 1}, {"$node": 1}, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False,
                {"$node": 2},
            ],
        ),
    ],
    "memory-004": [
        full([5, 1, 4], 0.0),
        full([1, 1], 2**40),
        ("aten::ctc_loss.IntList", [{"$node": 1}, {"$node": 2}, [5], [1]]),
    ],
    "memory-005": [
        full([4], 1.0),
        full([2], 2**30),
        (
            "aten::_segment_reduce_backward.default",
            [{"$node": 1}, {"$node": 1}, {"$node": 1}, "sum"],
        ),
    ],
    "memory-006": [
        full([1, 1], 2**40),
        full([1], 1.0),
        ("aten::sparse_coo_tensor.indices_size", [{"$node": 1}, {"$node": 2}, [4]]),
        ("aten::to_dense.default", [{"$node": 3}]),
    ],
    "memory-007": [
        full([1, 1], 1.0),
        full([1], 2**40),
        (
            "aten::_embedding_bag_dense_backward.default",
            [
                {"$node": 1}, {"$node": 2}, {"$node": 2}, {"$node": 2}, {"$node": 2}, 4, False, 0,
                None,
            ],
        ),
    ],
    "memory-009": [("aten::empty.memory_format", [[65536]])],
    "memory-011": [("aten::rand.default", [[4]])],
    "resource-018": [full([1], 2**45), ("aten::bincount.default", [{"$node": 1}])],
    "resource-019": [("aten::empty.memory_format", [[2_000_000_000]])],
    "resource-020": [full([2500, 2500], 1.0), ("aten::linalg_svd.default", [{"$node": 1}])],
}  # fmt: skip


def dangerous_to_fold(watched: Watched, case: Any) -> None:
    """Folding leaves it alone, or the request alone is refused; nothing runs, nothing dies."""
    graph = small()
    for name, args in FOLDED[case["id"]]:
        last = graph.node("call_function", target=(OPERATOR, name), args=args)
    graph.node("output", args=[[{"$node": 0}, {"$node": last}]])
    graph.finished()
    for passes in (("constant_fold",), ("shape_propagation", "constant_fold")):
        outcome = watched.ask(graph.serialized(), graph.names, *passes)
        if isinstance(outcome, Refusal):
            assert outcome.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), outcome
            continue
        operator = FOLDED[case["id"]][-1][0].partition("::")[2].partition(".")[0]
        with connected(watched.server.address) as stub:
            code = artifact(stub, outcome.module_key, pb.ARTIFACT_KIND_CODE).data.decode()
        assert operator in code
        assert sum(constant.size_bytes for constant in outcome.constants) < 2**20
