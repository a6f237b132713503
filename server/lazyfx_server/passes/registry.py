"""The passes of a server, and their construction from name and options."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, get_args, get_origin, get_type_hints

from lazyfx.shared.native.setting_types import (
    Bool,
    Float,
    Int,
    Name,
    ValueType,
    mismatch_reason,
)
from lazyfx.shared.printable import shown
from lazyfx.shared.suggesting import SHORT_NAMES, did_you_mean
from lazyfx_server.passes.base import OptionValue, Pass
from lazyfx_server.passes.builtin import BUILTIN_PASSES
from lazyfx_server.passes.errors import PassError

_NAME: Final = Name()
# The valid values of an option whose field has no `metadata["takes"]`.
_USUAL: Final[Mapping[type, ValueType]] = {
    bool: Bool(),
    int: Int(-(2**53), 2**53),
    float: Float(-1e300, 1e300),
    str: _NAME,
}
_MAX_ITEMS: Final = 10_000


@dataclass(frozen=True, slots=True)
class OptionDescription:
    """An option: its name, type ("bool", "int", "float", "str", "list"), default and help."""

    name: str
    type: str
    default_value: str
    summary: str


@dataclass(frozen=True, slots=True)
class PassDescription:
    """A pass, as described by ListPasses."""

    name: str
    summary: str
    version: int
    needs_values: bool
    needs_shapes: bool
    mutates: bool
    options: tuple[OptionDescription, ...]
    origin: str = ""


class Registry:
    """Pass classes by name. Immutable."""

    def __init__(self, passes: Iterable[type[Pass]] = BUILTIN_PASSES) -> None:
        self._passes: dict[str, type[Pass]] = {}
        for pass_class in passes:
            other = self._passes.setdefault(pass_class.name, pass_class)
            if other is not pass_class:
                raise ValueError(f"two passes are named {pass_class.name!r}")

    def names(self) -> tuple[str, ...]:
        """The names of the passes, sorted."""
        return tuple(sorted(self._passes))

    def describe(self) -> list[PassDescription]:
        """Describes the passes, by name."""
        return [_describe(self._passes[name]) for name in self.names()]

    def create(self, name: str, options: Mapping[str, object] | None = None) -> Pass:
        """Create a pass.

        Args:
            name: As in `names`.
            options: Those that differ from their defaults.

        Raises:
            PassError: The pass, or one of its options, is unknown, or a value has
                the wrong type; `field` is "name" or "options.<option>".
        """
        pass_class = self._passes.get(name)
        if pass_class is None:
            if not _NAME.accepts(name):
                raise PassError(mismatch_reason(name, _NAME), field="name")
            raise PassError(
                f"no pass is named {shown(name)}{did_you_mean(name, self.names(), SHORT_NAMES)}",
                field="name",
            )
        types = _option_types(pass_class)
        takes = _value_types(pass_class)
        values: dict[str, Any] = {}
        for option, value in (options or {}).items():
            if option not in types:
                if not _NAME.accepts(option):
                    reason = mismatch_reason(option, _NAME)
                    raise PassError(reason, field="options", pass_name=name)
                hint = did_you_mean(option, types)
                raise PassError(
                    f"has no option {shown(option)}{hint}",
                    field=f"options.{option}",
                    pass_name=name,
                )
            values[option] = _convert(option, value, types[option], name)
            _check(option, values[option], takes[option], name)
        try:
            return pass_class(**values)
        except ValueError as error:  # the dataclass's own validation
            raise PassError(str(error), field="options", pass_name=name) from error


def _option_types(pass_class: type[Pass]) -> dict[str, Any]:
    hints = get_type_hints(pass_class)
    return {f.name: hints[f.name] for f in fields(pass_class)}


def _value_types(pass_class: type[Pass]) -> dict[str, ValueType]:
    """The valid values of each option; for a list, those of its items."""
    hints = _option_types(pass_class)
    found: dict[str, ValueType] = {}
    for option in fields(pass_class):
        hint = hints[option.name]
        scalar = get_args(hint)[0] if get_origin(hint) is tuple else hint
        found[option.name] = option.metadata.get("takes") or _USUAL[scalar]
    return found


def _check(option: str, value: OptionValue, expected: ValueType, pass_name: str) -> None:
    items = value if isinstance(value, tuple) else (value,)
    reason = next((r for item in items if (r := mismatch_reason(item, expected))), "")
    if len(items) > _MAX_ITEMS:
        reason = f"has {len(items)} items; it takes at most {_MAX_ITEMS}"
    if reason:
        raise PassError(
            f"option {option!r} {reason}", field=f"options.{option}", pass_name=pass_name
        )


def _type_name(annotation: Any) -> str:
    return "list" if get_origin(annotation) is tuple else str(annotation.__name__)


def _convert(option: str, value: object, annotation: Any, pass_name: str) -> OptionValue:
    if get_origin(annotation) is tuple and isinstance(value, list | tuple):
        item = get_args(annotation)[0]
        return tuple(_convert(option, v, item, pass_name) for v in value)  # type: ignore[misc]
    if annotation is float and type(value) is int:
        return float(value)
    if type(value) is annotation and isinstance(value, bool | int | float | str):
        return value
    raise PassError(
        f"option {option!r} takes {_type_name(annotation)}, not {shown(value)}",
        field=f"options.{option}",
        pass_name=pass_name,
    )


def _describe(pass_class: type[Pass]) -> PassDescription:
    types = _option_types(pass_class)
    return PassDescription(
        name=pass_class.name,
        summary=(inspect.getdoc(pass_class) or "").partition("\n")[0],
        version=pass_class.version,
        needs_values=pass_class.needs_values,
        needs_shapes=pass_class.needs_shapes,
        mutates=pass_class.mutates,
        options=tuple(
            OptionDescription(
                f.name, _type_name(types[f.name]), repr(f.default), str(f.metadata.get("help", ""))
            )
            for f in fields(pass_class)
        ),
        origin=pass_class.origin,
    )
