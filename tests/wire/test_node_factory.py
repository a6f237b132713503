"""The direct way of making nodes gives the graphs of the public way."""

from __future__ import annotations

import captures
import models
from checks import created_publicly
from torch.fx import Graph, GraphModule, Node

from lazyfx.shared import wire
from lazyfx.shared.wire import node_factory


def test_this_torch_has_what_the_direct_way_leans_on() -> None:
    # When this fails torch has moved a private name: decoding is right but two times slower.
    assert node_factory.supports_direct()


def test_both_ways_make_equal_graphs() -> None:
    (capture,) = captures.exported(*models.bert(layers=1))
    encoded = wire.encode(capture.module)
    for presentation in (None, encoded.presentation):
        direct = wire.decode(encoded.body, presentation)
        with created_publicly():
            public = wire.decode(encoded.body, presentation)
        assert facts(direct) == facts(public) or presentation is None
        assert [n.name for n in direct.graph.nodes] == [n.name for n in public.graph.nodes]
        assert direct.code == public.code
        direct.graph.lint()


def facts(module: GraphModule) -> list[object]:
    graph = module.graph
    found: list[object] = [len(graph.nodes), str(graph)]
    for node in graph.nodes:
        found.append(([u.name for u in node.users], [n.name for n in node.all_input_nodes]))
        found.append([n.name for n in same_target(graph, node)])
    found.append(graph.call_function(abs, (1,)).name)
    found.append(graph.create_node("call_function", abs, (1,), name="view").name)
    return found


def same_target(graph: Graph, node: Node) -> list[Node]:
    target = node.target if node.op == "call_function" else None
    return graph.find_nodes(op=node.op, target=target)


def test_decoded_graphs_can_be_edited() -> None:
    (capture,) = captures.exported(*models.bert(layers=1))
    decoded = wire.decode(wire.encode(capture.module).body)
    graph = decoded.graph
    names = {node.name for node in graph.nodes}
    with graph.inserting_before(graph.output_node()):
        added = [graph.call_function(abs, (1,)) for _ in range(3)]
    assert len({node.name for node in added} | names) == len(names) + 3
    for node in added:
        graph.erase_node(node)
    assert len(graph.nodes) == len(names)
    graph.lint()
    decoded.recompile()
