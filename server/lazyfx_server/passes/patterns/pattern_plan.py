"""What a search for a pattern needs to know of it: its ends, and from where each can be reached."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch.fx import Graph, Node

from lazyfx_server.passes.patterns.calls_by_target import CallKey, CallsByTarget, call_key


@dataclass(frozen=True, slots=True)
class Anchor:
    """An end of a pattern: a result that no other call of the pattern uses.

    Attributes:
        node: The node of the pattern.
        ways: Ways to it from each target below it: the keys of the calls on the shortest way, from
            that target to the anchor, both included.
    """

    node: Node
    ways: tuple[tuple[CallKey, ...], ...]

    def candidates(self, calls: CallsByTarget) -> list[Node]:
        """The nodes of a graph that may be this end, in the order of the graph.

        Starts at the target of the pattern that is rarest in the graph, and goes on from there
        over the users: everything else cannot be a match.
        """
        way = min(self.ways, key=lambda way: (calls.count(way[0]), len(way)))
        if len(way) == 1:
            return calls.nodes(way[0])
        reached = set(calls.nodes(way[0], in_order=False))
        for key in way[1:]:
            reached = {user for node in reached for user in node.users if call_key(user) == key}
        return sorted(reached)


@dataclass(frozen=True, slots=True)
class PatternPlan:
    """A pattern, prepared for the search.

    Attributes:
        inputs: Its placeholders, which match anything.
        results: The nodes that it returns.
        anchors: Its ends, where a search begins.
        calls: All other nodes, in the order of the pattern.
        needs: How many different nodes with each key a match consists of.
        nodes: The number of nodes of its graph.
    """

    inputs: tuple[Node, ...]
    results: tuple[Node, ...]
    anchors: tuple[Anchor, ...]
    calls: tuple[Node, ...]
    needs: Mapping[CallKey, int]
    nodes: int

    def may_match(self, calls: CallsByTarget) -> bool:
        """Whether a graph has enough calls of each target. Nothing else is looked at if not."""
        return all(calls.count(key) >= needed for key, needed in self.needs.items())


def plan_of(pattern: Graph) -> PatternPlan:
    """Prepares a pattern. Its graph must have calls, placeholders and an output only."""
    output = pattern.output_node()
    inputs = tuple(node for node in pattern.nodes if node.op == "placeholder")
    calls = tuple(node for node in pattern.nodes if node.op not in {"placeholder", "output"})
    ends = [node for node in output.all_input_nodes if set(node.users) == {output}]
    return PatternPlan(
        inputs,
        tuple(output.all_input_nodes),
        tuple(Anchor(end, _ways(end)) for end in ends),
        calls,
        Counter(map(call_key, calls)),
        len(pattern.nodes),
    )


def _ways(end: Node) -> tuple[tuple[CallKey, ...], ...]:
    """The shortest way from each target below an end, breadth first."""
    ways: dict[CallKey, tuple[CallKey, ...]] = {call_key(end): (call_key(end),)}
    seen = {end}
    level: list[tuple[Node, tuple[CallKey, ...]]] = [(end, (call_key(end),))]
    while level:
        below: list[tuple[Node, tuple[CallKey, ...]]] = []
        for node, way in level:
            for operand in node.all_input_nodes:
                if operand.op == "placeholder" or operand in seen:
                    continue
                seen.add(operand)
                longer = (call_key(operand), *way)
                ways.setdefault(longer[0], longer)
                below.append((operand, longer))
        level = below
    return tuple(ways.values())
