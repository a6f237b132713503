"""Finds the places of a graph where a pattern matches.

The rules are those of `torch.fx.passes.utils.matcher_utils.SubgraphMatcher`, so that rewrites find
what torch's `replace_pattern` finds: placeholders match anything, literals equal literals of the
same type (here also behind an input that occurs twice; 0.0 is not -0.0, and the tuple of an index
is not a list), two nodes of a pattern never the same node; nothing outside may use what is inside,
except results; no way may lead out of the match and back into it; of matches that overlap, the
first counts. The search differs: it begins at the rarest target of the pattern (as the tables of
Inductor's `PatternMatcherPass`, by the target of the last call, but chosen per graph), and ends
before it begins if a target does not occur.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch._ops import OpOverload
from torch.fx import Node

from lazyfx_server.passes.patterns.calls_by_target import CallsByTarget
from lazyfx_server.passes.patterns.literal_keys import literal_key
from lazyfx_server.passes.patterns.pattern_plan import PatternPlan

# Calls that do something else for a tuple than for a list.
INDEXING = frozenset({operator.getitem, operator.setitem, "__getitem__", "__setitem__"})


@dataclass(slots=True)
class Match:
    """A place where a pattern matches.

    Attributes:
        nodes: For each call of the pattern, the node that it matches.
        inputs: What its inputs match: nodes, literals or lists of them.
        results: The nodes that its results match.
    """

    nodes: dict[Node, Node]
    inputs: list[Any]
    results: list[Node]


def find_matches(plan: PatternPlan, calls: CallsByTarget) -> list[Match]:
    """The matches of a pattern, none of which overlaps an earlier one, in graph order of its ends.

    Raises:
        RecursionError: The pattern is nested too deeply for Python's stack.
    """
    if not plan.may_match(calls):
        return []
    candidates = [anchor.candidates(calls) for anchor in plan.anchors]
    found: list[Match] = []
    taken: set[Node] = set()
    for bound in _bindings(plan, candidates, 0, _Binding({}, set())):
        match = _match(plan, bound)
        # A match that overlaps one before it is left out, one that is no match does not count.
        if _is_contained(match, plan) and not _leads_back(match):
            inside = match.nodes.values()
            if taken.isdisjoint(inside):
                taken.update(inside)
                found.append(match)
    return found


class _Binding:
    """What nodes of a pattern stand for, during an attempt to match it."""

    __slots__ = ("taken", "values")

    def __init__(self, values: dict[Node, Any], taken: set[Node]) -> None:
        self.values = values
        self.taken = taken

    def copy(self) -> _Binding:
        return _Binding(self.values.copy(), self.taken.copy())

    def call(self, ours: Node, theirs: Node) -> bool:
        """Whether a node of the graph matches a node of the pattern, with all below it."""
        if ours in self.values:
            return self.values[ours] is theirs
        if theirs in self.taken:
            return False
        if ours.op == "placeholder":
            self.values[ours] = theirs
            self.taken.add(theirs)
            return True
        if ours.op != theirs.op or ours.target != theirs.target:
            return False
        if ours.target in INDEXING and not same_containers(ours.args, theirs.args):
            return False
        self.values[ours] = theirs
        self.taken.add(theirs)
        pair = _aligned(ours, theirs)
        return pair is not None and self.arguments(*pair)

    def arguments(self, ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
        """Whether arguments, or the items of a list, match one by one."""
        if len(ours) != len(theirs):
            return False
        for one, other in zip(ours, theirs, strict=True):
            if isinstance(one, Node):
                if isinstance(other, Node):
                    matched = self.call(one, other)
                else:
                    matched = self._literal(one, other)
            elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
                matched = self.arguments(one, other)
            else:
                matched = literal_key(one) == literal_key(other)
            if not matched:
                return False
        return True

    def _literal(self, ours: Node, theirs: Any) -> bool:
        if ours.op != "placeholder":
            return False
        if ours in self.values:
            return literal_key(self.values[ours]) == literal_key(theirs)
        self.values[ours] = theirs
        return True


def same_containers(one: Any, other: Any) -> bool:
    """Whether lists and tuples in two arguments are of the same kinds."""
    if not (isinstance(one, list | tuple) and isinstance(other, list | tuple)):
        return True
    same = isinstance(one, tuple) == isinstance(other, tuple)
    return same and all(map(same_containers, one, other))


def _aligned(ours: Node, theirs: Node) -> tuple[list[Any], list[Any]] | None:
    """The arguments of two calls of one target in the same order; None if they differ in number."""
    if len(ours.args) == len(theirs.args) and list(ours.kwargs) == list(theirs.kwargs):
        return (
            [*ours.args, *ours.kwargs.values()],
            [*theirs.args, *theirs.kwargs.values()],
        )
    if ours.op == "call_function" and isinstance(ours.target, OpOverload):
        return _with_defaults(ours.target, ours), _with_defaults(ours.target, theirs)
    return None


def _with_defaults(operator: OpOverload[..., Any], node: Node) -> list[Any]:
    """All arguments of a call in the order of the operator's schema."""
    arguments = []
    for i, argument in enumerate(operator._schema.arguments):  # noqa: SLF001 - has no public name
        if argument.name in node.kwargs:
            arguments.append(node.kwargs[argument.name])
        elif not argument.kwarg_only and i < len(node.args):
            arguments.append(node.args[i])
        else:
            arguments.append(argument.default_value)
    return arguments


def _bindings(
    plan: PatternPlan, candidates: Sequence[Sequence[Node]], end: int, before: _Binding
) -> Iterator[_Binding]:
    """Every binding of the pattern's ends to candidates, that of the first end changing last."""
    if end == len(candidates):
        yield before
        return
    for node in candidates[end]:
        binding = before.copy()
        if binding.call(plan.anchors[end].node, node):
            yield from _bindings(plan, candidates, end + 1, binding)


def _match(plan: PatternPlan, binding: _Binding) -> Match:
    values = binding.values
    return Match(
        {node: values[node] for node in plan.calls},
        [values[node] for node in plan.inputs],
        [values[node] for node in plan.results],
    )


def _is_contained(match: Match, plan: PatternPlan) -> bool:
    """Whether only results are used outside the match."""
    inside = set(match.nodes.values())
    return all(
        inside.issuperset(theirs.users)
        for ours, theirs in match.nodes.items()
        if ours not in plan.results
    )


def _leads_back(match: Match) -> bool:
    """Whether a node outside the match uses a result and is used inside: merged, a cycle."""
    inside = set(match.nodes.values())
    last = max(inside)
    # Users come after what they use, so only nodes before the last one can lead back.
    todo = [user for node in match.results for user in node.users if user < last]
    seen = set(inside)
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        for user in node.users:
            if user in inside:
                return True
            if user < last:
                todo.append(user)
    return False
