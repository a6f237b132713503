"""Checks the statements of a generated function against the nodes of its graph."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch.fx._pytree as fx_pytree
from torch.fx import Graph, Node
from torch.fx.graph import inplace_methods, magic_methods
from torch.utils import _pytree as pytree

from lazyfx.shared.source.call_expressions import Reader
from lazyfx.shared.source.mismatch import SourceMismatchError

_HOLE = "_hole_"


class Body:
    """The statements of one function, read in order.

    Args:
        function: The generated function.
        names: The values of global names.
        graph: The graph from which it was generated.
    """

    def __init__(
        self, function: ast.FunctionDef, names: Mapping[str, object], graph: Graph
    ) -> None:
        arguments = function.args
        if not arguments.args or arguments.posonlyargs:
            raise SourceMismatchError("the function is not forward(self, ...)")
        self._arguments = arguments
        self._root = arguments.args[0].arg
        self._reader = Reader(names, self._root)
        self._statements = iter(function.body)
        self._graph = graph

    def check(self) -> None:
        """Check the whole function.

        Raises:
            SourceMismatchError: A statement does not match its node; names the node.
        """
        placeholders = [node for node in self._graph.nodes if node.op == "placeholder"]
        if getattr(self._graph._codegen, "pytree_info", None) is not None:  # noqa: SLF001 - torch has no public way to it
            self._bind_flattened(placeholders)
        else:
            self._bind_arguments(placeholders)
        for node in self._graph.nodes:
            if node.op != "placeholder":
                self._check_node(node)
        if next(self._statements, None) is not None:
            raise SourceMismatchError("there are statements after the end")

    def _bind_arguments(self, placeholders: list[Node]) -> None:
        """Match placeholders with the function's parameters, in order."""
        given = list(self._written_arguments())
        if len(given) != len(placeholders):
            raise SourceMismatchError("its parameters differ")
        for (name, default), node in zip(given, placeholders, strict=True):
            if name != node.target or (default is None) != (not node.args):
                raise SourceMismatchError("a parameter differs", node.name)
            if default is not None and not self._reader.is_argument(default, node.args[0]):
                raise SourceMismatchError("a default differs", node.name)
            self._reader.nodes[name.lstrip("*")] = node

    def _written_arguments(self) -> Iterator[tuple[str, ast.expr | None]]:
        """The function's parameters: names with stars, and defaults."""
        arguments = self._arguments
        plain = arguments.args[1:]
        without = len(plain) - len(arguments.defaults)
        for i, argument in enumerate(plain):
            yield argument.arg, arguments.defaults[i - without] if i >= without else None
        if arguments.vararg is not None:
            yield f"*{arguments.vararg.arg}", None
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            yield argument.arg, default
        if arguments.kwarg is not None:
            yield f"**{arguments.kwarg.arg}", None

    def _bind_flattened(self, placeholders: list[Node]) -> None:
        """Match placeholders with the leaves of the function's arguments, in order."""
        if not placeholders:
            return
        statement = next(self._statements, None)
        if (
            not isinstance(statement, ast.Assign)
            or len(statement.targets) != 1
            or not isinstance(statement.targets[0], (ast.Tuple, ast.List))
            or not self._is_flattening(statement.value)
        ):
            raise SourceMismatchError("its arguments are not flattened by its in_spec")
        names = [part.id for part in statement.targets[0].elts if isinstance(part, ast.Name)]
        if names != [node.target for node in placeholders]:
            raise SourceMismatchError("its flattened arguments differ")
        if not self._takes_what_is_flattened():
            raise SourceMismatchError("its arguments differ, or their order does")
        self._reader.nodes.update(zip(names, placeholders, strict=True))

    def _takes_what_is_flattened(self) -> bool:
        """Whether the function's parameters are those of the calling convention, in order."""
        info = getattr(self._graph._codegen, "pytree_info", None)  # noqa: SLF001 - as above
        expected = list(info.orig_args) if info is not None else []
        if expected and expected[0] == self._root:
            del expected[0]
        return [name.lstrip("*") for name, _ in self._written_arguments()] == expected

    def _is_flattening(self, value: ast.expr) -> bool:
        """Whether this is `fx_pytree.tree_flatten_spec(<all arguments>, self._in_spec)`."""
        if (
            not isinstance(value, ast.Call)
            or len(value.args) != 2
            or value.keywords
            or not self._reader.is_target(value.func, fx_pytree.tree_flatten_spec)
            or self._reader.path(value.args[1]) != ["_in_spec"]
        ):
            return False
        taken = [name.lstrip("*") for name, _ in self._written_arguments()]
        handed_on = [
            part.id
            for part in ast.walk(value.args[0])
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load)
        ]
        only_containers = all(
            isinstance(part, (ast.Name, ast.List, ast.Tuple, ast.Dict, ast.Constant, ast.Load))
            for part in ast.walk(value.args[0])
        )
        # They are one level deep, so that a walk visits them in order.
        return only_containers and handed_on == taken

    def _check_node(self, node: Node) -> None:
        statement = self._next_statement(node)
        if node.op == "output":
            if not self._is_output(statement, node):
                raise SourceMismatchError("the return value differs", node.name)
            return
        if node.op == "call_function" and _pattern(node, inplace_methods) is not None:
            if not self._fits(_template(node, inplace_methods), statement, node):
                raise SourceMismatchError("the operation differs", node.name)
            # The operator changed its first argument, which is the node's value.
            bound = _bound(next(self._statements, None))
            if bound is None or not self._reader.is_argument(bound[1], node.args[0]):
                raise SourceMismatchError("the result differs", node.name)
        else:
            bound = _bound(statement)
            if bound is None or not self._is_node(bound[1], node):
                raise SourceMismatchError("the operation differs", node.name)
        self._reader.nodes[bound[0]] = node

    def _next_statement(self, node: Node) -> ast.stmt:
        """The next statement that computes something; others only bind or release names."""
        for statement in self._statements:
            if not self._is_about_names(statement):
                return statement
        raise SourceMismatchError("it ends too early", node.name)

    def _is_about_names(self, statement: ast.stmt) -> bool:
        """Handle `a = b` and `a = b = None`, which only rename and release nodes."""
        if not isinstance(statement, ast.Assign):
            return False
        targets = [part.id for part in statement.targets if isinstance(part, ast.Name)]
        if len(targets) != len(statement.targets):
            return False
        value = statement.value
        nodes = self._reader.nodes
        if isinstance(value, ast.Constant) and value.value is None:
            for name in targets:
                nodes.pop(name, None)
            return True
        if isinstance(value, ast.Name) and value.id in nodes:
            for name in targets:
                nodes[name] = nodes[value.id]
            return True
        return False

    def _is_node(self, value: ast.expr, node: Node) -> bool:
        """Whether an expression computes a node."""
        reader = self._reader
        if node.op == "get_attr":
            return reader.path(value) == str(node.target).split(".")
        if node.op == "call_function":
            return self._is_function_call(value, node)
        if not isinstance(value, ast.Call):
            return False
        if node.op == "call_module":
            return reader.path(value.func) == str(node.target).split(".") and reader.are_arguments(
                value, node.args, node.kwargs
            )
        owner, name = reader.member(value.func)
        return (
            owner is not None
            and name == node.target
            and reader.is_argument(owner, node.args[0])
            and reader.are_arguments(value, node.args[1:], node.kwargs)
        )

    def _is_function_call(self, value: ast.expr, node: Node) -> bool:
        reader = self._reader
        if _pattern(node, magic_methods) is not None:
            return self._fits(_template(node, magic_methods), ast.Expr(value), node)
        if node.target is builtins.getattr and len(node.args) == 2 and not node.kwargs:
            owner, name = reader.member(value)
            return (
                owner is not None
                and name == node.args[1]
                and reader.is_argument(owner, node.args[0])
            )
        return (
            isinstance(value, ast.Call)
            and reader.is_target(value.func, node.target)
            and reader.are_arguments(value, node.args, node.kwargs)
        )

    def _is_output(self, statement: ast.stmt, node: Node) -> bool:
        if not isinstance(statement, ast.Return) or statement.value is None:
            return False
        value = statement.value
        info = getattr(self._graph._codegen, "pytree_info", None)  # noqa: SLF001 - as above
        if info is None or not info.out_spec:
            return self._reader.is_argument(value, node.args[0])
        return (
            isinstance(value, ast.Call)
            and len(value.args) == 2
            and not value.keywords
            and self._reader.is_target(value.func, pytree.tree_unflatten)
            and self._reader.is_argument(value.args[0], node.args[0])
            and self._reader.path(value.args[1]) == ["_out_spec"]
        )

    def _fits(self, template: ast.AST, written: ast.AST, node: Node) -> bool:
        """Whether an expression matches an operator's pattern with a node's arguments."""
        if isinstance(template, ast.Name) and template.id.startswith(_HOLE):
            argument = node.args[int(template.id.removeprefix(_HOLE))]
            return isinstance(written, ast.expr) and self._reader.is_argument(written, argument)
        if type(template) is not type(written):
            return False
        for field, part in ast.iter_fields(template):
            other = getattr(written, field)
            parts, others = (part, other) if isinstance(part, list) else ([part], [other])
            if len(parts) != len(others):
                return False
            for a, b in zip(parts, others, strict=True):
                inner = isinstance(a, ast.AST) and not isinstance(a, ast.expr_context)
                if inner and not self._fits(a, b, node):
                    return False
        return True


def _pattern(node: Node, patterns: Mapping[str, str]) -> str | None:
    """How torch.fx writes an operator, if with an operator symbol of Python."""
    if getattr(node.target, "__module__", "") != "_operator":
        return None
    return patterns.get(getattr(node.target, "__name__", ""))


def _template(node: Node, patterns: Mapping[str, str]) -> ast.stmt:
    pattern = _pattern(node, patterns)
    if pattern is None or pattern.count("{}") != len(node.args) or node.kwargs:
        raise SourceMismatchError("arguments that do not fit the operator", node.name)
    return _parsed(pattern)


@lru_cache(maxsize=128)
def _parsed(pattern: str) -> ast.stmt:
    holes = (f"{_HOLE}{i}" for i in range(pattern.count("{}")))
    return ast.parse(pattern.format(*holes)).body[0]


def _bound(statement: ast.stmt | None) -> tuple[str, ast.expr] | None:
    """Name and value of `name = value`; annotations are ignored."""
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value = statement.targets[0], statement.value
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target, value = statement.target, statement.value
    else:
        return None
    return (target.id, value) if isinstance(target, ast.Name) else None
