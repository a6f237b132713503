"""Checks whether expressions of generated source match the arguments of a node."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest

import torch
from torch.fx import Node

from lazyfx.shared.source.mismatch import SourceMismatchError
from lazyfx.shared.source.namespace import resolve
from lazyfx.shared.wire.values.exact_literals import plain

# Callables with which literals are written.
_WRITTEN_AS_CALLS: tuple[Callable[..., object], ...] = (torch.device, slice, complex)
_NOTHING = object()


class Reader:
    """Matches expressions; knows which node each name refers to at this point.

    Args:
        names: The values of the other names.
        root: The name of the module in the function.
    """

    def __init__(self, names: Mapping[str, object], root: str) -> None:
        self.nodes: dict[str, Node] = {}
        self._names = names
        self._root = root

    def is_argument(self, expression: ast.expr, argument: object) -> bool:
        """Whether an expression matches an argument, recursively."""
        if isinstance(argument, Node):
            return isinstance(expression, ast.Name) and self.nodes.get(expression.id) is argument
        if isinstance(argument, tuple) and hasattr(argument, "_fields"):
            return self._is_call_of(expression, type(argument), tuple(argument))
        if isinstance(argument, tuple):
            return isinstance(expression, ast.Tuple) and self._are(expression.elts, argument)
        if isinstance(argument, list):
            return isinstance(expression, ast.List) and self._are(expression.elts, argument)
        if isinstance(argument, dict):
            return self._is_dictionary(expression, argument)
        if isinstance(argument, slice):
            parts = (argument.start, argument.stop, argument.step)
            return self._is_call_of(expression, slice, parts)
        return _same(self._literal(expression), argument)

    def are_arguments(
        self, call: ast.Call, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> bool:
        """Whether a call has these arguments, with keywords in this order."""
        return (
            self._are(call.args, args)
            and [keyword.arg for keyword in call.keywords] == list(kwargs)
            and self._are([keyword.value for keyword in call.keywords], list(kwargs.values()))
        )

    def is_target(self, expression: ast.expr, target: object) -> bool:
        """Whether a dotted name refers to this callable; a name of a node does not."""
        first = expression
        while isinstance(first, ast.Attribute):
            first = first.value
        if not isinstance(first, ast.Name) or first.id in self.nodes or first.id == self._root:
            return False
        found = resolve(expression, self._names)
        return found is target or (type(found) is type(target) and bool(found == target))

    def path(self, expression: ast.expr) -> list[str] | None:
        """The attribute path from the module."""
        if isinstance(expression, ast.Name):
            return [] if expression.id == self._root else None
        owner, name = self.member(expression)
        if owner is None or name is None or (before := self.path(owner)) is None:
            return None
        return [*before, name]

    def member(self, expression: ast.expr) -> tuple[ast.expr | None, str | None]:
        """Owner and name of `owner.name` or `getattr(owner, "name")`."""
        if isinstance(expression, ast.Attribute):
            return expression.value, expression.attr
        if (
            isinstance(expression, ast.Call)
            and len(expression.args) == 2
            and not expression.keywords
            and self.is_target(expression.func, getattr)
        ):
            name = expression.args[1]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                return expression.args[0], name.value
        return None, None

    def _are(self, expressions: Sequence[ast.expr], arguments: Sequence[object]) -> bool:
        return all(
            expression is not None and self.is_argument(expression, argument)
            for expression, argument in zip_longest(expressions, arguments)
        ) and len(expressions) == len(arguments)

    def _is_call_of(self, expression: ast.expr, cls: type, args: Sequence[object]) -> bool:
        return (
            isinstance(expression, ast.Call)
            and self.is_target(expression.func, cls)
            and self.are_arguments(expression, args, {})
        )

    def _is_dictionary(self, expression: ast.expr, argument: dict[object, object]) -> bool:
        if not isinstance(expression, ast.Dict):
            return False
        keys = [key for key in expression.keys if key is not None]
        return (
            len(keys) == len(expression.keys)
            and self._are(keys, list(argument))
            and self._are(expression.values, list(argument.values()))
        )

    def _literal(self, expression: ast.expr) -> object:
        """Evaluate an expression without nodes, of the forms that torch.fx writes."""
        if isinstance(expression, ast.Constant):
            return expression.value
        if isinstance(expression, ast.UnaryOp) and isinstance(expression.op, ast.USub):
            value = self._literal(expression.operand)
            return -value if type(value) in (int, float, complex) else _NOTHING  # type: ignore[operator]
        if isinstance(expression, ast.BinOp):
            return self._complex(expression)
        if isinstance(expression, ast.Call):
            return self._written_as_call(expression)
        if isinstance(expression, ast.Tuple):
            return tuple(map(self._literal, expression.elts))
        try:
            found = resolve(expression, self._names)
        except SourceMismatchError:
            return _NOTHING
        names_a_node = isinstance(expression, ast.Name) and expression.id in self.nodes
        return _NOTHING if names_a_node else found

    def _complex(self, expression: ast.BinOp) -> object:
        left, right = self._literal(expression.left), self._literal(expression.right)
        if type(left) not in (int, float) or type(right) is not complex:
            return _NOTHING
        # As in Python, which may lose the sign of a zero.
        if isinstance(expression.op, ast.Add):
            return left + right  # type: ignore[operator]
        return left - right if isinstance(expression.op, ast.Sub) else _NOTHING  # type: ignore[operator]

    def _written_as_call(self, expression: ast.Call) -> object:
        for cls in _WRITTEN_AS_CALLS:
            if self.is_target(expression.func, cls):
                args = [self._literal(part) for part in expression.args]
                kwargs = {k.arg: self._literal(k.value) for k in expression.keywords if k.arg}
                if _NOTHING in (*args, *kwargs.values()):
                    return _NOTHING
                return cls(*args, **kwargs)
        return _NOTHING


def _same(value: object, argument: object) -> bool:
    """Whether a literal equals this argument; numbers are compared as text (-0.0, nan)."""
    if value is argument:
        return True
    argument = plain(argument)
    if isinstance(argument, (float, complex, torch.device)):
        return type(value) is type(argument) and repr(value) == repr(argument)
    return type(value) is type(argument) and bool(value == argument)
