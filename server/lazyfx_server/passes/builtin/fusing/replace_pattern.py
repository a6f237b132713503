"""Passes that replace one subgraph by another."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch.fx import Graph, GraphModule, Node

from lazyfx_server.passes.analysis.called_operators import KnownValues
from lazyfx_server.passes.analysis.walk import attribute_at, graph_modules, unused_name
from lazyfx_server.passes.base import Pass, PassContext, PassResult, Rewrite
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.patterns.calls_by_target import CallsByTarget, call_key
from lazyfx_server.passes.patterns.guards import check_guards, holds
from lazyfx_server.passes.patterns.match_safety import MatchSafety, nodes_in
from lazyfx_server.passes.patterns.matching import Match, find_matches
from lazyfx_server.passes.patterns.pattern_plan import PatternPlan, plan_of
from lazyfx_server.passes.patterns.replacing import replace_matches
from lazyfx_server.settings.limits import PassLimits


@dataclass(frozen=True)
class ReplacePattern(Pass):
    """Replaces every match of a pattern graph with a replacement graph.

    Inputs of a pattern match anything. Each rewrite goes over the graph once, in the given order,
    so it terminates even if its replacement matches its pattern. A match is skipped if moving its
    nodes together would cross a write to their inputs or results, a use of what they write, or
    another draw of random numbers. New nodes have no shapes; run
    shape_propagation afterwards to compute them.
    """

    name: ClassVar[str] = "replace_pattern"
    version: ClassVar[int] = 3
    only_reads_rewrites: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Applies the rewrites of the request, including in nested GraphModules.

        Raises:
            PassError: A rewrite cannot be applied ("rewrites[i].pattern" or
                "rewrites[i].replacement"), or matches too often (kind "limit").
        """
        matches = 0
        search = _Search(context.limits)
        parts = [_Part(part) for part in graph_modules(module)] if context.rewrites else []
        for place, entry in enumerate(context.rewrites):
            rewrite = Rewrite(*entry)
            _check(rewrite.pattern, rewrite.replacement, f"rewrites[{place}]")
            check_guards(rewrite, f"rewrites[{place}].guards")
            plan = plan_of(rewrite.pattern.graph)
            count = 0
            for part in parts:
                search.begin(part, plan, place)
                found = part.rewrite(
                    rewrite, plan, _Allowance(rewrite, context.limits, count, place)
                )
                if found:
                    for other in parts:
                        other.was_changed_inside(part)
                count += found
            matches += count
        note = f"{matches} matches" if context.rewrites else "no rewrites"
        return PassResult(module, matches > 0, note)


class _Allowance:
    """How many matches of a rewrite may be replaced, by its own bound and the server's."""

    def __init__(self, rewrite: Rewrite, limits: PassLimits, earlier: int, place: int) -> None:
        self._at_most = rewrite.at_most
        self._accepted = earlier
        self._allowed = limits.bound("max_matches")
        self.field = f"rewrites[{place}].pattern"

    @property
    def is_used_up(self) -> bool:
        """Whether no more matches are wanted."""
        return 0 < self._at_most <= self._accepted

    def take(self) -> None:
        """Counts a match.

        Raises:
            PassError: There are more than the server allows.
        """
        self._accepted += 1
        if self._accepted > self._allowed.most:
            raise PassError(
                f"the pattern matches at more than {self._allowed.most} places{self._allowed}",
                kind="limit",
                field=self.field,
            )


class _Part:
    """One graph of the module, with what is known of it between rewrites."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.calls = CallsByTarget(module.graph)
        self._safety = MatchSafety(module)
        self._inside = frozenset(graph_modules(module)[1:])

    # Created at the first match: most patterns match nowhere, and most have no guards.
    @cached_property
    def _known(self) -> KnownValues:
        return KnownValues(self.module)

    def was_changed_inside(self, part: _Part) -> None:
        """Forgets what may be different now that another graph was changed."""
        if part.module in self._inside:
            self._safety.forget()

    def rewrite(self, rewrite: Rewrite, plan: PatternPlan, allowance: _Allowance) -> int:
        """Applies a rewrite once; returns how many matches were replaced."""
        try:
            found = find_matches(plan, self.calls)
        except RecursionError as error:
            raise PassError(
                "the pattern is too deep: its nodes and lists are nested further "
                "than Python's stack allows; use a smaller pattern",
                kind="limit",
                field=allowance.field,
            ) from error
        accepted = self._accepted(found, rewrite, allowance)
        if accepted:
            self._replace(accepted, rewrite.replacement)
        self.module.recompile()
        return len(accepted)

    def _accepted(
        self, found: Sequence[Match], rewrite: Rewrite, allowance: _Allowance
    ) -> list[Match]:
        """The matches that may be replaced. All are checked before the first is replaced."""
        inputs = [node for node in rewrite.replacement.graph.nodes if node.op == "placeholder"]
        handed = rewrite.replacement.graph.output_node().all_input_nodes
        handed_through = [i for i, node in enumerate(inputs) if node in handed]
        accepted: list[Match] = []
        returned: set[Node] = set()
        used: set[Node] = set()
        for match in found:
            if allowance.is_used_up:
                break
            if any(not isinstance(match.inputs[i], Node) for i in handed_through):
                continue  # a literal cannot replace a node
            if rewrite.guards and not holds(rewrite.guards, match.inputs, self._known):
                continue
            if self._safety.is_safe(match, returned, used):
                allowance.take()
                accepted.append(match)
                returned.update(match.results)
                used.update(nodes_in(match.inputs))
        return accepted

    def _replace(self, matches: Sequence[Match], replacement: GraphModule) -> None:
        template, attributes = _template(self.module, replacement)
        removed = {node for match in matches for node in match.nodes.values()}
        keys = [*map(call_key, removed)]
        added = replace_matches(self.module.graph, matches, template)
        for name, value in attributes.items():
            setattr(self.module, name, value)
        self.calls.replace(keys, map(call_key, added))
        self._safety.was_replaced(removed, added)


def _template(
    module: GraphModule, replacement: GraphModule
) -> tuple[Graph, dict[str, torch.Tensor]]:
    """The replacement without its names and metadata, and its attributes under unused names."""
    template = Graph()
    made: dict[Node, Node] = {}
    paths: dict[str, str] = {}
    attributes: dict[str, torch.Tensor] = {}
    for node in replacement.graph.nodes:
        target = node.target
        if node.op == "get_attr":
            path = str(target)
            if path not in paths:
                paths[path] = _free_name(module, attributes)
                value = attribute_at(replacement, path)
                assert isinstance(value, torch.Tensor)
                attributes[paths[path]] = value.detach()  # a constant, parameter or not
            target = paths[path]
        made[node] = template.create_node(
            node.op,
            target,
            torch.fx.node.map_arg(node.args, made.__getitem__),
            torch.fx.node.map_arg(node.kwargs, made.__getitem__),
        )
    return template, attributes


def _free_name(module: GraphModule, taken: Collection[str]) -> str:
    name = unused_name(module, "_replaced_")
    number = int(name.rpartition("_")[2])
    while hasattr(module, name) or name in taken:
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

    At worst, every node that calls what a pattern ends with is tried; from each, the search goes
    over the pattern once. For a pattern with several results all combinations of end nodes are.
    """

    def __init__(self, limits: PassLimits) -> None:
        self._limits = limits
        self._steps = 0

    def begin(self, part: _Part, plan: PatternPlan, place: int) -> None:
        """Deduct the steps of one search from the remaining budget.

        Raises:
            PassError: The budget is exceeded (kind "limit").
        """
        # Combinations of nodes that the results of the pattern may match.
        combinations = math.prod(
            max(1, part.calls.count(call_key(anchor.node))) for anchor in plan.anchors
        )
        places, steps = self._limits.bound("max_matches"), self._limits.bound("max_match_steps")
        self._steps += combinations * plan.nodes**2
        reason = ""
        if combinations > max(places.most, len(part.module.graph.nodes)):
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


def _inputs(module: GraphModule) -> int:
    return sum(node.op == "placeholder" for node in module.graph.nodes)


def _refused(message: str, field: str, node: Node | None = None) -> PassError:
    return PassError(message, field=field, node=None if node is None else node.name, graph=None)
