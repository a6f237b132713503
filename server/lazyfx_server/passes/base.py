"""The contract of a pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch.fx import GraphModule

from lazyfx_server.settings.limits import PassLimits

# An option of a pass: what a dataclass field of a Pass may hold.
OptionScalar = bool | int | float | str
OptionValue = OptionScalar | tuple[OptionScalar, ...]


@dataclass(frozen=True, slots=True)
class InputGuard:
    """What an input of a pattern must be at a place; see compiler.proto."""

    input: int
    dtypes: tuple[str, ...] = ()
    rank: int | None = None
    shape: tuple[int, ...] = ()


class Rewrite(NamedTuple):
    """What replace_pattern replaces, by what, and where; see compiler.proto."""

    pattern: GraphModule
    replacement: GraphModule
    guards: tuple[InputGuard, ...] = ()
    at_most: int = 0


Rewrites = tuple[Rewrite | tuple[GraphModule, GraphModule], ...]


@dataclass(frozen=True, slots=True)
class PassContext:
    """What a pass is given besides the module.

    Tensor attributes of the module that are not on the meta device have values.

    Attributes:
        rewrites: (pattern, replacement) pairs, for replace_pattern.
        limits: Bounds to keep to.
    """

    rewrites: Rewrites = ()
    limits: PassLimits = field(default_factory=PassLimits)


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass did.

    Attributes:
        module: The module given, changed in place, or a new one.
        changed: The graph, its attributes or its metadata differ from before.
        note: Something a person should know, e.g. "3 matches".
        data: What an analysis found: JSON-like, goes into the report as it is.
    """

    module: GraphModule
    changed: bool
    note: str = ""
    data: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation of a graph. Options are the fields of the (frozen) dataclass.

    A field's `metadata["help"]` describes the option, and `metadata["takes"]` says what values it
    takes (see `setting_types`): each item's if it is a list. Without it an int is one of
    53 bits, a float is finite, and a str is a name. The first line of the docstring describes
    the pass. A pass edits the graph in place, calls
    `module.recompile()` when it changed it (which only marks), and generates no
    code. It says `changed` only if something changed.
    """

    name: ClassVar[str]
    # Raise it whenever results of the pass may change: it is part of every cache key.
    version: ClassVar[int] = 1
    needs_values: ClassVar[bool] = False
    needs_shapes: ClassVar[bool] = False
    mutates: ClassVar[bool] = True
    # Neither changes the graphs of its rewrites nor keeps them: they may be shared by jobs.
    only_reads_rewrites: ClassVar[bool] = False
    # Relative difference that results may show; what changes precision says how much.
    tolerance: ClassVar[float] = 1e-3
    # Set by the server for passes of plugins: the distribution, and a digest of its code.
    origin: ClassVar[str] = ""
    source_digest: ClassVar[str] = ""

    def fingerprint(self) -> str:
        """What else its results depend on, e.g. a file or the version of a library."""
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
            PassError: It cannot; the driver adds the pass and its place.
        """
