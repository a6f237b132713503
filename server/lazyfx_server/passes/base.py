"""The interface of a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch.fx import GraphModule

from lazyfx_server.settings.limits import PassLimits

# The value of an option: what a dataclass field of a Pass may contain.
OptionScalar = bool | int | float | str
OptionValue = OptionScalar | tuple[OptionScalar, ...]


@dataclass(frozen=True, slots=True)
class InputGuard:
    """A condition on an input of a pattern at a match; see compiler.proto."""

    input: int
    dtypes: tuple[str, ...] = ()
    rank: int | None = None
    shape: tuple[int, ...] = ()


class Rewrite(NamedTuple):
    """A pattern, its replacement and conditions, for replace_pattern; see compiler.proto."""

    pattern: GraphModule
    replacement: GraphModule
    guards: tuple[InputGuard, ...] = ()
    at_most: int = 0


Rewrites = tuple[Rewrite | tuple[GraphModule, GraphModule], ...]


@dataclass(frozen=True, slots=True)
class PassContext:
    """What a pass gets in addition to the module.

    Tensor attributes of the module that are not on the meta device have values.

    Attributes:
        rewrites: (pattern, replacement) pairs, for replace_pattern.
        limits: Bounds to respect.
    """

    rewrites: Rewrites = ()
    limits: PassLimits = field(default_factory=PassLimits)


@dataclass(frozen=True, slots=True)
class PassResult:
    """The result of a pass.

    Attributes:
        module: The given module, changed in place, or a new one.
        changed: The graph, its attributes or its metadata differ from before.
        note: A note for people, e.g. "3 matches".
        data: The result of an analysis: JSON-like, copied to the report.
    """

    module: GraphModule
    changed: bool
    note: str = ""
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation of a graph. Options are the fields of the (frozen) dataclass.

    A field's `metadata["help"]` describes the option, and `metadata["takes"]` its valid values (see
    `setting_types`); for a list, those of each item. By default an int has at most 53 bits, a float
    is finite, and a str is a name. The first line of the docstring describes the pass. A pass edits
    the graph in place, calls `module.recompile()` after changes (which only marks the code stale),
    and generates no code. It sets `changed` only if something changed.
    """

    name: ClassVar[str]
    # Increase it whenever results of the pass may change: it is part of every cache key.
    version: ClassVar[int] = 1
    needs_values: ClassVar[bool] = False
    needs_shapes: ClassVar[bool] = False
    mutates: ClassVar[bool] = True
    # The pass must neither change nor keep the graphs of its rewrites: jobs may share them.
    only_reads_rewrites: ClassVar[bool] = False
    # Allowed relative difference of results; a pass that changes precision sets it.
    tolerance: ClassVar[float] = 1e-3
    # Set by the server for passes of plugins: the distribution, and a digest of its code.
    origin: ClassVar[str] = ""
    source_digest: ClassVar[str] = ""

    def fingerprint(self) -> str:
        """Anything else that its results depend on, e.g. a file or the version of a library."""
        return ""

    def values_read(self, module: GraphModule) -> frozenset[str]:  # noqa: ARG002
        """Paths of the tensor attributes whose values `run` would read.

        Args:
            module: The module with its tensors on the meta device.
        """
        return frozenset()

    @abstractmethod
    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Transforms the module.

        Raises:
            PassError: The pass failed; the driver adds its name and position.
        """
