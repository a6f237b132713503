"""Makes each group of equal blocks calls of one graph, which Inductor lowers and compiles once."""

from __future__ import annotations

import operator
from typing import Final

import torch
from torch.fx import Graph, GraphModule, Node

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.native.equal_blocks.choosing import Group, choose_groups


def call_equal_blocks_once(module: GraphModule) -> list[pb.EqualBlocks]:
    """Replace equal blocks of a graph by calls of one nested graph for each group, in place.

    Args:
        module: A graph whose inputs have fake values, which is compiled without gradients, in
            the state that is set now, and without autocast.

    Returns:
        What was found; empty if the graph is unchanged.
    """
    found = []
    replaced: dict[Node, Node] = {}
    groups = choose_groups(module)
    # Replacing one group changes what the blocks of another read, so all are copied before.
    bodies = [_body(group) for group in groups]
    for number, (group, body) in enumerate(zip(groups, bodies, strict=True)):
        _outline(module, group, body, f"{_NAME}{number}", replaced)
        found.append(pb.EqualBlocks(nodes=len(group.blocks[0]), calls=len(group.blocks)))
    if found:
        module.graph.lint()
        module.recompile()
    return found


_NAME: Final = "equal_block_"


def _outline(
    module: GraphModule, group: Group, body: Graph, name: str, replaced: dict[Node, Node]
) -> None:
    """Add a nested graph, and replace each block by a call of it.

    Args:
        module: Holds the graph.
        group: Equal blocks.
        body: A copy of the first one.
        name: A new attribute for their graph.
        replaced: What stands for nodes of blocks that have been replaced; added to.
    """
    module.add_module(name, GraphModule(module, body))
    graph = module.graph
    with graph.inserting_before(group.blocks[0][0]):
        attribute = graph.get_attr(name)
    for block, inputs in zip(group.blocks, group.inputs, strict=True):
        with graph.inserting_before(block[0]):
            # torch traces and lowers one graph for all calls with the same identifier.
            call = graph.call_function(
                torch.ops.higher_order.invoke_subgraph,
                (attribute, name, *(replaced.get(node, node) for node in inputs)),
            )
            results = [block[place] for place in group.results]
            call.meta["example_value"] = tuple(node.meta["example_value"] for node in results)
            for number, old in enumerate(results):
                new = graph.call_function(operator.getitem, (call, number))
                new.meta = dict(old.meta)
                old.replace_all_uses_with(new)
                replaced[old] = new
        for node in reversed(block):
            graph.erase_node(node)


def _body(group: Group) -> Graph:
    body = Graph()
    copies: dict[Node, Node] = {}
    for number, given in enumerate(group.inputs[0]):
        copies[given] = body.placeholder(f"x{number}")
        copies[given].meta = dict(given.meta)
    for node in group.blocks[0]:
        copies[node] = body.node_copy(node, copies.__getitem__)
    body.output(tuple(copies[group.blocks[0][place]] for place in group.results))
    return body
