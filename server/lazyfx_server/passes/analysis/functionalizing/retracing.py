"""Traces a graph again through torch's dispatcher, on fake tensors, back into its module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.utils._pytree import tree_leaves, tree_map

from lazyfx_server.passes.analysis.called_operators import KnownValues
from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.evaluation import without_real_constants
from lazyfx_server.passes.analysis.functionalizing.ordered_draws import (
    Draws,
    draw_in_place,
    draws_otherwise,
)
from lazyfx_server.passes.analysis.functionalizing.ordered_writes import OrderedWrites
from lazyfx_server.passes.analysis.functionalizing.refused_writes import (
    write_that_tracing_changes,
)
from lazyfx_server.passes.analysis.output_counts import BoundedInterpreter
from lazyfx_server.passes.analysis.walk import attribute_at, unused_name


class CannotRetrace(Exception):  # noqa: N818 - a reason, said in the report
    """The graph cannot be retraced; the message says why."""


@dataclass(frozen=True)
class Retraced:
    """A retraced graph.

    Attributes:
        traced: The new graph; its placeholders are the inputs, then the attributes.
        attributes: Paths of the attributes.
    """

    traced: GraphModule
    attributes: tuple[str, ...]

    def put_into(self, module: GraphModule) -> None:
        """Replaces the calls of a module's graph by the traced ones, keeping inputs and outputs."""
        graph, old = Graph(owning_module=module), module.graph
        made: dict[Node, Any] = {}
        inputs = [node for node in self.traced.graph.nodes if node.op == "placeholder"]
        given = [node for node in old.nodes if node.op == "placeholder"]
        for ours, theirs in zip(given, inputs, strict=False):
            made[theirs] = graph.node_copy(ours)
        for path, theirs in zip(self.attributes, inputs[len(given) :], strict=True):
            made[theirs] = graph.get_attr(path)
            made[theirs].meta = _metadata(theirs)
        for node in self.traced.graph.nodes:
            if node.op == "get_attr":
                made[node] = self._constant(module, graph, node)
            elif node.op not in ("placeholder", "output"):
                made[node] = graph.node_copy(node, made.__getitem__)
                made[node].meta = _metadata(node)
        returned = self.traced.graph.output_node().args[0]
        values = [made[v] if isinstance(v, Node) else v for v in tree_leaves(returned)]
        output = old.output_node()
        replacements = dict(zip(output.all_input_nodes, values, strict=True))
        result = torch.fx.node.map_arg(output.args[0], replacements.__getitem__)
        graph.output(result, output.type).meta = dict(output.meta)
        graph.set_codegen(old._codegen)  # noqa: SLF001 - torch's own way to keep a signature
        for node in reversed(graph.nodes):
            if node.op == "get_attr" and not node.users:
                graph.erase_node(node)
        graph.lint()
        module._graph = graph  # noqa: SLF001 - the setter would ask for a recompile of its own

    def _constant(self, module: GraphModule, graph: Graph, node: Node) -> Node:
        value = attribute_at(self.traced, str(node.target))
        name = unused_name(module, "_constant_")
        setattr(module, name, value)
        made = graph.create_node("get_attr", name)
        made.meta = _metadata(node)
        return made


def retrace(
    module: GraphModule,
    table: Mapping[OpOverload[..., Any], Callable[..., Any]],
) -> Retraced:
    """Retraces a module's graph.

    Args:
        module: Neither called nor changed.
        table: The decomposition table.

    Raises:
        CannotRetrace: The graph contains something that retracing would not preserve.
    """
    known = KnownValues(module)
    _check(module, known)
    inputs = [_input(node, known) for node in module.graph.nodes if node.op == "placeholder"]
    paths = _attributes(module)
    values = [_described(path, known) for path in paths]
    trains = any(value is not None and value.requires_grad for value in (*inputs, *values))
    if reason := write_that_tracing_changes(module, trains=trains):
        raise CannotRetrace(reason)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [_fake(mode, value) for value in (*inputs, *values)]

    def call(*raw: Any) -> Any:
        def functional(*given: Any) -> list[Any]:
            pairs = [None if r is None else (r, g) for r, g in zip(raw, given, strict=True)]
            attributes = dict(zip(paths, given[len(inputs) :], strict=True))
            seen = {
                path: pair for path, pair in zip(paths, pairs[len(inputs) :], strict=False) if pair
            }
            writes = OrderedWrites(module.graph, pairs[: len(inputs)], seen)
            return _Lifted(module, attributes, writes).results(list(given[: len(inputs)]))

        return torch.func.functionalize(functional)(*raw)

    traced = make_fx(
        call,
        decomposition_table={**_LAID_OUT, **table},
        _allow_non_fake_inputs=True,
    )
    try:
        with torch.no_grad(), without_real_constants():
            found = traced(*fakes)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise CannotRetrace(f"tracing failed: {type(error).__name__}: {text}") from error
    _check_constants(found)
    draw_in_place(found.graph)
    found.graph.eliminate_dead_code(is_impure_node=lambda node: not effects_of(node).pure)
    if trains:
        _check_differentiable(found, mode, [*inputs, *values])
    return Retraced(found, tuple(paths))


def _laid_out(operator: OpOverload[..., Any]) -> Callable[..., Any]:
    """A decomposition that gives an operator's first operand a memory format that it preserves.

    According to fake tensors, batch normalization preserves any memory format. In fact it preserves
    contiguous and channels-last only, so a view that is valid after another format may not be.
    """

    def rule(x: torch.Tensor, *others: Any) -> Any:
        if any(x.is_contiguous(memory_format=order) for order in _KEPT.get(x.ndim, _PLAIN)):
            return NotImplemented
        return operator(x.contiguous(), *others)

    return rule


_PLAIN = (torch.contiguous_format,)
_KEPT = {
    4: (torch.contiguous_format, torch.channels_last),
    5: (torch.contiguous_format, torch.channels_last_3d),
}
_ATEN = torch.ops.aten
_LAID_OUT = {
    operator: _laid_out(operator)
    for operator in (
        _ATEN.native_batch_norm.default,
        _ATEN._native_batch_norm_legit.default,  # noqa: SLF001 - the operator's name
        _ATEN._native_batch_norm_legit.no_stats,  # noqa: SLF001
        _ATEN._native_batch_norm_legit_no_training.default,  # noqa: SLF001
        _ATEN._native_batch_norm_legit_functional.default,  # noqa: SLF001
    )
}


class _Lifted(BoundedInterpreter):
    """Runs a graph with its attributes as arguments."""

    def __init__(
        self, module: GraphModule, attributes: Mapping[str, Any], writes: OrderedWrites
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._attributes = attributes
        self._writes = writes

    def results(self, inputs: list[Any]) -> list[Any]:
        """The values that the output node reads, in order, each once."""
        self.run(*inputs)
        self._writes.perform()
        return [self.env[node] for node in self.graph.output_node().all_input_nodes]

    def run_node(self, n: Node) -> Any:
        """A node's value; writes that it could see are performed before it runs."""
        self._writes.before(n)
        if self._writes.writes_one_by_one(n):
            value = self._one_by_one(n)
        else:
            with Draws():
                value = super().run_node(n)
        self._writes.after(n)
        return value

    def _one_by_one(self, node: Node) -> Any:
        """Calls `_foreach_add_` and the like for one tensor after the other, as its kernel does."""
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        given = {"args": args, "kwargs": kwargs}

        def only(place: int) -> Any:
            return tree_map(lambda v: [v[place]] if is_list(v) else v, given, is_leaf=is_list)

        def is_list(value: Any) -> bool:
            return isinstance(value, list | tuple) and value is not args

        made = []
        for place in range(len(next(filter(is_list, (*args, *kwargs.values()))))):
            self._writes.perform()
            one = only(place)
            made.append(self.call_function(node.target, one["args"], one["kwargs"]))
            self._writes.note_writes(node)
        return [value[0] for value in made] if made and made[0] is not None else None

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:  # noqa: ARG002 - contract
        return self._attributes[target]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        called = self.fetch_attr(target)
        names = [name for name, _ in (*called.named_parameters(), *called.named_buffers())]
        tensors = {name: self._attributes[f"{target}.{name}"] for name in names}
        return torch.func.functional_call(called, tensors, args, dict(kwargs))


def _check(module: GraphModule, known: KnownValues) -> None:
    if any(isinstance(part, GraphModule) for part in list(module.modules())[1:]):
        raise CannotRetrace("the graph has nested graphs")
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "output") and effects_of(node).state:
            raise CannotRetrace(f"{node.name} changes global state")
        if draws_otherwise(node, known):
            raise CannotRetrace(
                f"{node.name} draws random numbers in an order that tracing would change"
            )


def _attributes(module: GraphModule) -> list[str]:
    """Paths of the tensors that the graph reads, including those of called modules, each once."""
    paths: dict[str, None] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            paths[str(node.target)] = None
        elif node.op == "call_module":
            called = module.get_submodule(str(node.target))
            for name, _ in (*called.named_parameters(), *called.named_buffers()):
                paths[f"{node.target}.{name}"] = None
    for path in paths:
        if not isinstance(attribute_at(module, path), torch.Tensor):
            raise CannotRetrace(f"attribute {path} is not a tensor")
    return list(paths)


def _input(node: Node, known: KnownValues) -> torch.Tensor | None:
    value = known.tensor(node)
    if value is None and node.users:
        raise CannotRetrace(f"input {node.name} has no concrete shape")
    return value


def _described(path: str, known: KnownValues) -> torch.Tensor:
    value = known.attribute(path)
    if value is None:
        raise CannotRetrace(f"attribute {path} has no shape")
    return value


def _fake(mode: FakeTensorMode, value: torch.Tensor | None) -> Any:
    if value is None:
        return None
    with mode:
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )


def _metadata(node: Node) -> dict[str, Any]:
    return {key: value for key, value in node.meta.items() if key == "val"}


def _check_constants(traced: GraphModule) -> None:
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            value = attribute_at(traced, str(node.target))
            if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
                raise CannotRetrace("a constant has no value")


def _check_differentiable(
    traced: GraphModule, mode: FakeTensorMode, values: list[torch.Tensor | None]
) -> None:
    """Refuse a graph whose operators lost their derivatives.

    It is differentiated on the CPU: derivatives do not depend on the device, and a torch without
    that device would end the process.
    """
    with mode:
        fakes: list[Any] = [None if value is None else _on_cpu(value) for value in values]
    graph = Graph()
    graph.output(graph.graph_copy(traced.graph, {}))
    for node in graph.nodes:
        node.args = map_aggregate(node.args, _cpu_for_device)
        node.kwargs = map_aggregate(node.kwargs, _cpu_for_device)
    on_cpu = GraphModule(traced, graph)
    with mode, torch.enable_grad(), without_real_constants():
        leaves = []
        for fake, value in zip(fakes, values, strict=True):
            if value is not None and value.requires_grad:
                fake.requires_grad_(True)
                leaves.append(fake)
        try:
            # Copies, because a tensor that requires grad and is written to must not be a leaf.
            copies = tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, fakes)
            results = tree_leaves(Interpreter(on_cpu).run(*copies))
            wanted = [t for t in results if isinstance(t, torch.Tensor) and t.requires_grad]
            if wanted:
                total = torch.stack([t.abs().sum().float() for t in wanted]).sum()
                torch.autograd.grad(total, leaves, allow_unused=True)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise CannotRetrace(
                f"the result would not be differentiable: {type(error).__name__}: {text}"
            ) from error


def _on_cpu(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)


def _cpu_for_device(argument: Any) -> Any:
    return torch.device("cpu") if isinstance(argument, torch.device) else argument
