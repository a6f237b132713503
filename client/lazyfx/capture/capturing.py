"""Converts what callers pass to one GraphModule with the caller's own parameters."""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule
from torch.fx.graph import _PyTreeCodeGen

from lazyfx.errors import LazyfxError

# The frame that torch.export blames.
_LINE = re.compile(r'raised this error:\s+File "(?P<file>[^"]+)", line (?P<line>\d+)')


@runtime_checkable
class HasGraph(Protocol):
    """Anything that can rebuild a graph: a saved graph, a compiled module."""

    def graph_module(self) -> GraphModule:
        """The graph."""


Compilable: TypeAlias = "GraphModule | ExportedProgram | torch.nn.Module | HasGraph"
ExampleInputs: TypeAlias = "Sequence[object] | Mapping[str, object] | torch.Tensor | None"


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A graph to compile, and its calling convention.

    Attributes:
        module: The graph, with its parameters and buffers.
    """

    module: GraphModule

    def apply_codegen(self, graph: Graph) -> None:
        """Give a graph rebuilt from graph data the calling convention of this one.

        A graph of torch.export takes nested Python structures; how they are flattened is known only
        to the client.
        """
        codegen = self.module.graph._codegen  # noqa: SLF001 - torch has no public reader
        if isinstance(codegen, _PyTreeCodeGen):
            graph.set_codegen(copy.copy(codegen))

    def apply_input_checks(self, rebuilt: GraphModule) -> None:
        """Check the inputs of a rebuilt module as torch.export checks those of this one."""
        for hook in self.module._forward_pre_hooks.values():  # noqa: SLF001 - no public reader
            rebuilt.register_forward_pre_hook(_check_by(hook, self.module), with_kwargs=True)


class GraphCapturer:
    """Converts what callers pass to graphs; an ExportedProgram is unlifted only once."""

    def __init__(self) -> None:
        self._programs: weakref.WeakKeyDictionary[ExportedProgram, CapturedGraph] = (
            weakref.WeakKeyDictionary()
        )

    def capture(self, what: Compilable, example_inputs: ExampleInputs = None) -> CapturedGraph:
        """Capture a graph.

        Args:
            what: A GraphModule, taken as it is; an ExportedProgram; a saved graph or a compiled
                module, rebuilt; or any other module, exported here with the example inputs.
            example_inputs: For a module: positional arguments (a tuple, a list or one
                tensor), or keyword arguments (a mapping).

        Raises:
            LazyfxError: A module came without example inputs, or cannot be exported.
        """
        if isinstance(what, GraphModule):
            return CapturedGraph(what)
        if isinstance(what, ExportedProgram):
            return self._unlift(what)
        if not isinstance(what, torch.nn.Module):
            if isinstance(what, HasGraph):
                return CapturedGraph(what.graph_module())
            raise LazyfxError(_not_a_graph(what))
        if isinstance(what, torch.jit.ScriptModule):
            raise LazyfxError(
                "a TorchScript module has no torch.fx graph; pass the nn.Module that it was "
                "created from"
            )
        if example_inputs is None:
            raise LazyfxError(
                f"a {type(what).__name__} is not a graph: pass example_inputs to capture it, or "
                "pass the result of torch.export.export(module, inputs) or "
                "torch.fx.symbolic_trace(module)"
            )
        args, kwargs = _arguments(example_inputs)
        try:
            program = torch.export.export(what, args, kwargs, strict=False)
        except Exception as error:  # export raises errors of every kind
            reason = _reason_of(error)
            raise LazyfxError(f"torch.export cannot capture this module: {reason}") from error
        return CapturedGraph(_module(program))

    def _unlift(self, program: ExportedProgram) -> CapturedGraph:
        captured = self._programs.get(program)
        if captured is None:
            captured = CapturedGraph(_module(program))
            self._programs[program] = captured
        return captured


def _not_a_graph(what: object) -> str:
    given = f"an object of type {type(what).__name__}"
    more = ""
    if isinstance(what, (str, Path)):
        given = f"{str(what)!r}, a path"
        more = "; read the file first: torch.export.load(path), or lazyfx.load_graph(path)"
    elif callable(what):
        more = "; torch.fx.symbolic_trace turns a function into a GraphModule"
    elif isinstance(what, Graph):
        more = "; torch.fx.GraphModule(root, graph) combines a Graph with its tensors"
    return (
        f"cannot compile {given}: pass a GraphModule, an ExportedProgram, or a Module with "
        f"example_inputs{more}"
    )


def _reason_of(error: Exception) -> str:
    """torch.export's message without its debugging advice, and what to do instead."""
    text = str(error)
    if "data-dependent" not in text:
        return text
    first = text.strip().partition("\n")[0]
    found = _LINE.search(text)
    where = f" at {found['file']}, line {found['line']}" if found else ""
    return (
        f"{first.rstrip('. ')}{where}: the control flow depends on tensor values; use torch.cond "
        'or torch.where there, or torch.compile(module, backend="lazyfx"), which captures the '
        "code before and after it"
    )


def _module(program: ExportedProgram) -> GraphModule:
    # As a submodule, guards would be extra code; without it, torch installs a pre-hook that checks
    # inputs, which `apply_input_checks` copies.
    return program.module(check_guards=False)


def _arguments(inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, torch.Tensor):
        return (inputs,), {}
    assert inputs is not None
    return tuple(inputs), {}


def _check_by(hook: Any, original: GraphModule) -> Any:
    def check(_module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        hook(original, args, kwargs)

    return check
