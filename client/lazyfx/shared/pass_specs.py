"""Passes as data: a name, options, and for replace_pattern the rewrites as graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import torch
from torch.fx import GraphModule, symbolic_trace

from lazyfx.errors import LazyfxError
from lazyfx.shared import wire
from lazyfx.shared.pass_spelling import UNTIL_STABLE, Group, Option, Spelled, parse
from lazyfx.v1 import compiler_pb2 as pb

Traceable: TypeAlias = Callable[..., object]


@dataclass(frozen=True)
class InputGuard:
    """A condition on the metadata of an input of a pattern at a match.

    Attributes:
        input: Index of the input among the pattern's inputs.
        dtypes: Allowed dtypes, e.g. ("float32", "bfloat16"); empty for all.
        rank: Number of dimensions, or None for any.
        shape: Sizes, -1 for any; empty for any shape.
    """

    input: int
    dtypes: tuple[str, ...] = ()
    rank: int | None = None
    shape: tuple[int, ...] = ()


class Rewrite(NamedTuple):
    """A rewrite with conditions; a plain pair (pattern, replacement) is one without.

    Attributes:
        pattern: The graph to search for.
        replacement: The graph that replaces it.
        guards: Conditions on the inputs; all must hold for a match.
        at_most: Replace at most this many matches, the first in graph order; 0 for all.
    """

    pattern: Traceable | GraphModule
    replacement: Traceable | GraphModule
    guards: tuple[InputGuard, ...] = ()
    at_most: int = 0


@dataclass(frozen=True)
class PassSpec:
    """A pass to run on the server.

    An immutable value: it captures its options and graphs on construction. Changing a pattern later
    does not change the spec, so a spec that is used again need not be compared.

    Attributes:
        name: A name listed by `client.passes()`.
        options: Options that differ from their defaults.
        rewrites: replace_pattern only: pairs of pattern and replacement, or Rewrites.
        passes: until_stable only: the passes to repeat.

    Raises:
        UnsupportedGraphError: A pattern or replacement cannot be encoded.
        LazyfxError: An option has a type that options cannot have.
    """

    name: str
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    rewrites: tuple[tuple[GraphModule, GraphModule] | Rewrite, ...] = ()
    passes: tuple[PassSpec, ...] = ()
    _message: pb.PassSpec = field(init=False, repr=False, compare=False)
    _identity: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        options = {name: _frozen(value) for name, value in self.options.items()}
        object.__setattr__(self, "options", MappingProxyType(options))
        spec = pb.PassSpec(name=self.name)
        for name in sorted(options):
            spec.options.add(name=name, value=_option_value(name, options[name]))
        for entry in self.rewrites:
            rewrite = Rewrite(*entry)
            replacement = wire.encode(_graph(rewrite.replacement))
            read = [each for each in replacement.attributes[0] if isinstance(each, torch.Tensor)]
            spec.rewrites.add(
                pattern=wire.encode(_graph(rewrite.pattern)).message(),
                replacement=replacement.message(),
                constants=[bytes(wire.tensor_bytes(each)) for each in read],
                guards=[_guard(guard) for guard in rewrite.guards],
                at_most=rewrite.at_most,
            )
        spec.passes.extend(each.message() for each in self.passes)
        object.__setattr__(self, "_message", spec)
        object.__setattr__(self, "_identity", spec.SerializeToString(deterministic=True))

    def message(self) -> pb.PassSpec:
        """The spec as a message. It is shared: copy it before changing it."""
        return self._message

    @property
    def identity(self) -> bytes:
        """Equal for equivalent specs, including the names in patterns."""
        return self._identity

    def spelled(self) -> Spelled:
        """The spec for `pass_spelling.spell`, without its rewrites."""
        if not self.passes:
            return self.name, self.options
        inner = tuple((each.name, each.options) for each in self.passes)
        return Group(self.name, self.options, inner)

    def graphs(self) -> Iterator[GraphModule]:
        """The patterns and replacements, including those of inner passes."""
        for pair in self.rewrites:
            yield _graph(pair[0])
            yield _graph(pair[1])
        for each in self.passes:
            yield from each.graphs()


@dataclass(frozen=True, slots=True)
class Modes:
    """How a request runs on the server.

    Attributes:
        eager: On eager modules: each recompile that a pass requests is performed at once.
        verify: With results compared before and after on random inputs; a pass that changed a
            result is refused.
        priority: How urgent it is: a number of the enum Priority of the wire format.
    """

    eager: bool = False
    verify: bool = False
    priority: int = 0


DEFAULT_MODES = Modes()


# Names and specs in execution order, a single one, or the spelling of a pipeline.
Passes: TypeAlias = "str | PassSpec | Iterable[str | PassSpec]"
PassTuple: TypeAlias = "tuple[PassSpec, ...]"


def pass_spec(name: str, /, **options: Option) -> PassSpec:
    """A pass with options, e.g. `pass_spec("constant_fold", max_bytes=4096)`."""
    return PassSpec(name, MappingProxyType(dict(options)))


def until_stable(*passes: str | PassSpec, at_most: int = 8) -> PassSpec:
    """Passes that are repeated until none of them changes the graph.

    Args:
        passes: Names and specs, in execution order.
        at_most: The maximum number of rounds.
    """
    return PassSpec(
        UNTIL_STABLE, MappingProxyType({"at_most": at_most}), passes=tuple(map(_spec, passes))
    )


def spec_of(spelled: Spelled) -> PassSpec:
    """The spec of a pass, or a group of passes, from `pass_spelling.parse`."""
    inner = spelled.passes if isinstance(spelled, Group) else ()
    return PassSpec(spelled[0], spelled[1], passes=tuple(spec_of(each) for each in inner))


def normalize(passes: Passes) -> PassTuple:
    """Normalize passes given in any form; each request does so once.

    Raises:
        SpellingError: The text is not a valid pipeline; says what was expected where.
        LazyfxError: It is neither a string, a PassSpec, nor several of them.
    """
    if isinstance(passes, str):
        return _spelled(passes)
    if isinstance(passes, PassSpec):
        return (passes,)
    if not isinstance(passes, Iterable):
        raise LazyfxError(
            f"passes must be a list of names and results of lazyfx.pass_spec, not {passes!r}"
        )
    return tuple(map(_spec, passes))


def _spec(given: object) -> PassSpec:
    if isinstance(given, PassSpec):
        return given
    if isinstance(given, str):
        return _named(given)
    raise LazyfxError(
        f"passes: {given!r} is neither a pass name nor a PassSpec; "
        "use lazyfx.pass_spec(name, option=value)"
    )


@lru_cache(maxsize=256)
def _named(name: str) -> PassSpec:
    return PassSpec(name)


@lru_cache(maxsize=256)
def _spelled(text: str) -> tuple[PassSpec, ...]:
    return tuple(map(spec_of, parse(text)))


def spec_of_message(message: pb.PassSpec) -> PassSpec:
    """The spec of a pass message, e.g. from a recording; it is sent on unchanged."""
    options = {option.name: _option_of(option.value) for option in message.options}
    spec = PassSpec(message.name, MappingProxyType(options))
    kept = pb.PassSpec()
    kept.CopyFrom(message)
    # Patterns in it stay graph data; the server that receives them checks them.
    object.__setattr__(spec, "_message", kept)
    object.__setattr__(spec, "_identity", kept.SerializeToString(deterministic=True))
    return spec


def replace_pattern(
    *rewrites: tuple[Traceable | GraphModule, Traceable | GraphModule] | Rewrite, **options: Option
) -> PassSpec:
    """The replace_pattern pass with its rewrites.

    Args:
        rewrites: Pairs of pattern and replacement, or Rewrites with conditions. Functions are
            traced here, on the client; graphs are used unchanged.
        options: Options of the pass.

    Raises:
        LazyfxError: One is not a pair.
    """
    for given in rewrites:
        sides = given[:2] if isinstance(given, (tuple, list)) else ()
        if len(sides) < 2 or not all(map(callable, sides)):
            raise LazyfxError(
                f"replace_pattern takes pairs (pattern, replacement) of functions, not {given!r}"
            )
    pairs = tuple(Rewrite(_graph(given[0]), _graph(given[1]), *given[2:]) for given in rewrites)
    return PassSpec("replace_pattern", MappingProxyType(dict(options)), pairs)


def messages(passes: PassTuple) -> list[pb.PassSpec]:
    """Passes as messages."""
    return [spec.message() for spec in passes]


def _graph(traceable: Traceable | GraphModule) -> GraphModule:
    return traceable if isinstance(traceable, GraphModule) else symbolic_trace(traceable)


def _guard(guard: InputGuard) -> pb.InputGuard:
    return pb.InputGuard(input=guard.input, dtypes=guard.dtypes, rank=guard.rank, shape=guard.shape)


def _option_of(value: pb.OptionValue) -> Option:
    kind = value.WhichOneof("kind")
    if kind == "list":
        return tuple(_option_of(item) for item in value.list.items)
    found: Option = getattr(value, str(kind))
    return found


def _frozen(value: Option) -> Option:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


def _option_value(name: str, value: Option) -> pb.OptionValue:
    if isinstance(value, bool):
        return pb.OptionValue(boolean=value)
    if isinstance(value, int):
        return pb.OptionValue(integer=value)
    if isinstance(value, float):
        return pb.OptionValue(floating=value)
    if isinstance(value, str):
        return pb.OptionValue(text=value)
    if isinstance(value, (list, tuple)):
        items = [_option_value(name, item) for item in value]
        return pb.OptionValue(list=pb.OptionValueList(items=items))
    raise LazyfxError(
        f"option {name!r} has a {type(value).__name__}; options are bool, int, float, str or lists"
    )
