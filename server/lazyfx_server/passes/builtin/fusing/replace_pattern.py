"""Passes that replace one subgraph by another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.utils.matcher_utils import InternalMatch
from torch.fx.subgraph_rewriter import replace_pattern_with_filters

from lazyfx_server.passes.analysis.called_operators import KnownValues
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import attribute_at, graph_modules, unused_name
from lazyfx_server.passes.base import Pass, PassContext, PassResult, Rewrite
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.patterns.guards import check_guards, holds
from lazyfx_server.settings.limits import PassLimits
from lazyfx_server.settings.part import Bound


@dataclass(frozen=True)
class ReplacePattern(Pass):
    """Replaces every match of a pattern graph with a replacement graph.

    Inputs of a pattern match anything. Each rewrite goes over the graph once, in the given order,
    so it terminates even if its replacement matches its pattern. A match is skipped if moving its
    nodes together would cross a write to their inputs. New nodes have no shapes; run
    shape_propagation afterwards to compute them.
    """

    name: ClassVar[str] = "replace_pattern"
    version: ClassVar[int] = 2
    only_reads_rewrites: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Applies the rewrites of the request, including in nested GraphModules.

        Raises:
            PassError: A rewrite cannot be applied ("rewrites[i].pattern" or
                "rewrites[i].replacement"), or matches too often (kind "limit").
        """
        matches = 0
        search = _Search(context.limits)
        for place, entry in enumerate(context.rewrites):
            rewrite = Rewrite(*entry)
            _check(rewrite.pattern, rewrite.replacement, f"rewrites[{place}]")
            check_guards(rewrite, f"rewrites[{place}].guards")
            count = 0
            for part in graph_modules(module):
                search.begin(part, rewrite.pattern, place)
                count += _rewrite(part, rewrite, context.limits, count, place)
            matches += count
        note = f"{matches} matches" if context.rewrites else "no rewrites"
        return PassResult(module, matches > 0, note)


def _rewrite(
    module: GraphModule, rewrite: Rewrite, limits: PassLimits, earlier: int, place: int
) -> int:
    guard = _Guard(module, rewrite, limits.bound("max_matches"), earlier, place)
    template = _template(module, rewrite.replacement, guard)
    try:
        found = replace_pattern_with_filters(
            module, rewrite.pattern, template, match_filters=[guard]
        )
    except RecursionError as error:
        raise PassError(
            "the pattern is too deep: its nodes and lists are nested further "
            "than Python's stack allows; use a smaller pattern",
            kind="limit",
            field=f"rewrites[{place}].pattern",
        ) from error
    if found:
        guard.add_attributes()
    return len(found)


class _Guard:
    """Decides for each match whether it may be replaced."""

    def __init__(
        self, module: GraphModule, rewrite: Rewrite, allowed: Bound, earlier: int, place: int
    ) -> None:
        replacement = rewrite.replacement
        self.accepted = earlier
        self._rewrite = rewrite
        self.attributes: dict[str, object] = {}
        self._module = module
        self._allowed = allowed
        self._place = place
        self._returned: set[Node] = set()
        inputs = [node for node in replacement.graph.nodes if node.op == "placeholder"]
        handed = replacement.graph.output_node().all_input_nodes
        self._handed_through = [i for i, node in enumerate(inputs) if node in handed]

    def __call__(self, match: InternalMatch, *_graphs: Graph) -> bool:
        wanted = self._rewrite.at_most
        if wanted and self.accepted >= wanted:
            return False
        if not holds(self._rewrite.guards, match.placeholder_nodes, self._known):
            return False
        if not self._is_safe(match):
            return False
        self.accepted += 1
        if self.accepted > self._allowed.most:
            raise PassError(
                f"the pattern matches at more than {self._allowed.most} places{self._allowed}",
                kind="limit",
                field=f"rewrites[{self._place}].pattern",
            )
        self._returned.update(match.returning_nodes)
        return True

    def add_attributes(self) -> None:
        """Adds the tensors that the replacement reads to the module."""
        for name, value in self.attributes.items():
            setattr(self._module, name, value)

    # Both are created at the first match: most patterns match nowhere. All matches are checked
    # before the first is replaced, so positions do not change.
    @cached_property
    def _known(self) -> KnownValues:
        return KnownValues(self._module)

    @cached_property
    def _storage(self) -> StorageMap:
        return StorageMap(self._module.graph)

    @cached_property
    def _switches(self) -> list[int]:
        storage = self._storage
        return [place for node, place in storage.position.items() if storage.effects[node].state]

    def _is_safe(self, match: InternalMatch) -> bool:
        positions = self._storage.position
        if any(not isinstance(match.placeholder_nodes[i], Node) for i in self._handed_through):
            return False  # a literal cannot replace a node
        inside = [n for p, n in match.nodes_map.items() if p.op not in {"placeholder", "output"}]
        places = frozenset(positions[node] for node in inside)
        users = [positions[user] for node in match.returning_nodes for user in node.users]
        # Where torch inserts the replacement: before the first user of a result.
        target = min(users, default=max(places) + 1)
        operands = [node for node in match.placeholder_nodes if isinstance(node, Node)]
        if len(match.returning_nodes) > 1 and any(
            positions[node] >= target or node in self._returned for node in operands
        ):
            return False
        first, last = min(places), max(target, max(places) + 1)
        if any(first <= switch < last and switch not in places for switch in self._switches):
            return False
        return not any(
            self._storage.written_between(node, first, last, places) for node in operands
        )


def _template(module: GraphModule, replacement: GraphModule, guard: _Guard) -> Graph:
    """The replacement without its names and metadata, its attributes under unused names."""
    template = Graph()
    made: dict[Node, Node] = {}
    paths: dict[str, str] = {}
    for node in replacement.graph.nodes:
        target = node.target
        if node.op == "get_attr":
            path = str(target)
            if path not in paths:
                paths[path] = _free_name(module, guard)
                value = attribute_at(replacement, path)
                assert isinstance(value, torch.Tensor)
                guard.attributes[paths[path]] = value.detach()  # a constant, parameter or not
            target = paths[path]
        made[node] = template.create_node(
            node.op,
            target,
            torch.fx.node.map_arg(node.args, made.__getitem__),
            torch.fx.node.map_arg(node.kwargs, made.__getitem__),
        )
    return template


def _free_name(module: GraphModule, guard: _Guard) -> str:
    name = unused_name(module, "_replaced_")
    number = int(name.rpartition("_")[2])
    while hasattr(module, name) or name in guard.attributes:
        number += 1
        name = f"_replaced_{number}"
    return name


def _check(pattern: GraphModule, replacement: GraphModule, where: str) -> None:
    """Refuses invalid rewrites, and those that a server cannot check."""
    _check_calls(pattern, f"{where}.pattern", allow_values=False)
    _check_calls(replacement, f"{where}.replacement", allow_values=True)
    returned = _check_results(pattern, f"{where}.pattern")
    inputs = [_inputs(graph_module) for graph_module in (pattern, replacement)]
    if inputs[0] != inputs[1]:
        raise _refused(
            f"takes {inputs[1]} inputs, the pattern takes {inputs[0]}", f"{where}.replacement"
        )
    given = replacement.graph.output_node().args[0]
    results = list(given) if isinstance(given, list | tuple) else [given]
    if len(results) != returned or not all(isinstance(r, Node) for r in results):
        raise _refused(
            f"must return {returned} values, as many as the pattern", f"{where}.replacement"
        )


def _check_calls(graph_module: GraphModule, field: str, *, allow_values: bool) -> None:
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            raise _refused("calls a module; use functions and methods", field, node)
        if node.op == "get_attr":
            value = attribute_at(graph_module, str(node.target))
            has_values = isinstance(value, torch.Tensor) and not value.is_meta
            if not (allow_values and has_values):
                raise _refused("reads an attribute; make it an input", field, node)


def _check_results(pattern: GraphModule, field: str) -> int:
    """Refuses patterns that match without a computed result; returns the number of results."""
    output = pattern.graph.output_node()
    returned = output.all_input_nodes
    for node in pattern.graph.nodes:
        if node.op == "output":
            continue
        if not node.users:
            raise _refused("the node is not used", field, node)
        if node.op == "placeholder" and node in returned:
            raise _refused("the input is returned unchanged", field, node)
    if not any(set(node.users) == {output} for node in returned):
        raise _refused("every result is used again inside the pattern", field)
    return len(returned)


class _Search:
    """Bounds the cost of pattern matching, before it starts.

    torch's matcher tries every node that may be the end of a pattern; from each it goes over the
    pattern once, and for each pattern node over those matched so far. For a pattern with several
    results it tries all combinations of end nodes.
    """

    def __init__(self, limits: PassLimits) -> None:
        self._limits = limits
        self._steps = 0

    def begin(self, module: GraphModule, pattern: GraphModule, place: int) -> None:
        """Deduct the steps of one search from the remaining budget.

        Raises:
            PassError: The budget is exceeded (kind "limit").
        """
        combinations = _combinations(module, pattern)
        places, steps = self._limits.bound("max_matches"), self._limits.bound("max_match_steps")
        self._steps += combinations * len(pattern.graph.nodes) ** 2
        reason = ""
        if combinations > max(places.most, len(module.graph.nodes)):
            reason = (
                f"the results of the pattern may match {combinations} combinations of nodes; the "
                f"limit is {places.most}{places}; return fewer results"
            )
        elif self._steps > steps.most:
            reason = (
                f"matching the patterns may take {self._steps} steps; the limit is "
                f"{steps.most}{steps}; use smaller patterns, or ones that end in a rarer call"
            )
        if reason:
            raise PassError(reason, kind="limit", field=f"rewrites[{place}].pattern")


def _combinations(module: GraphModule, pattern: GraphModule) -> int:
    """Number of combinations of nodes that the results of a pattern may match."""
    output = pattern.graph.output_node()
    combinations = 1
    for anchor in output.all_input_nodes:
        if set(anchor.users) == {output}:
            combinations *= max(
                1, sum(n.op == anchor.op and n.target == anchor.target for n in module.graph.nodes)
            )
    return combinations


def _inputs(module: GraphModule) -> int:
    return sum(node.op == "placeholder" for node in module.graph.nodes)


def _refused(message: str, field: str, node: Node | None = None) -> PassError:
    return PassError(message, field=field, node=None if node is None else node.name, graph=None)
