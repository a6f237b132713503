"""Settings of torch: sending and applying them.

A server compiles with its own defaults plus the settings that it was sent. Only those of
`setting_table` can be sent, each as a value of its type. `configuration` detects any other
difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lazyfx.errors import LazyfxError
from lazyfx.shared.native import named_values, torch_inductor
from lazyfx.shared.native.named_values import NamedValueError, Scalar
from lazyfx.shared.native.setting_table import FUNCTORCH, SETTINGS
from lazyfx.shared.native.setting_types import Float, mismatch_reason
from lazyfx.shared.printable import shown
from lazyfx.v1 import compiler_pb2 as pb

FIELD: Final = "native.settings"


def requested(
    mode: str | None, given: Mapping[str, Any], device_types: Iterable[str] = ()
) -> dict[str, Scalar]:
    """The settings of one torch.compile call: those of its mode, then its own.

    Args:
        mode: A mode of torch.compile.
        given: Settings of Inductor.
        device_types: Types of the graph's devices; CUDA graphs do not matter for others.

    Raises:
        LazyfxError: A setting cannot be sent, or its value has the wrong type; names it and says
            what is valid.
    """
    wanted: dict[str, Any] = {}
    if mode is not None and mode != "":
        wanted.update(_settings_of_mode(mode))
    wanted.update(given)
    if "cuda" not in device_types:
        wanted.pop("triton.cudagraphs", None)
    checked: dict[str, Scalar] = {}
    for name, value in wanted.items():
        if name not in SETTINGS or name.startswith(FUNCTORCH):
            raise LazyfxError(
                f"the Inductor setting {shown(name)} cannot be sent to a server; "
                "docs/training.md lists the settings that can"
            )
        if not torch_inductor.has_setting(name):
            raise LazyfxError(f"this torch has no Inductor setting {name!r}")
        if value is None and torch_inductor.default_setting(name) is None:
            continue
        checked[name] = _checked(name, value)
    # Settings that are set in this process need not be repeated in options.
    for name in sorted(SETTINGS.keys() - wanted.keys()):
        if torch_inductor.has_setting(name):
            value = torch_inductor.current_setting(name)
            if value != torch_inductor.default_setting(name):
                checked[name] = _checked(name, value)
    return checked


def to_proto(settings: Mapping[str, Scalar]) -> list[pb.PassOption]:
    """Settings as messages, sorted by name."""
    return named_values.to_messages(settings)


def from_proto(options: Iterable[pb.PassOption]) -> dict[str, Scalar]:
    """Settings of a request.

    Raises:
        NamedValueError: One cannot be sent, or its value has the wrong type.
    """
    return named_values.read_typed(options, FIELD, SETTINGS)


@contextmanager
def applied(settings: Mapping[str, Scalar]) -> Iterator[None]:
    """Apply settings within the block."""
    functorch = {k.removeprefix(FUNCTORCH): v for k, v in settings.items() if FUNCTORCH in k}
    inductor = {k: v for k, v in settings.items() if FUNCTORCH not in k}
    with (
        torch_inductor.inductor_config.patch(inductor),
        torch_inductor.functorch_config.patch(functorch),
    ):
        yield


def _settings_of_mode(mode: object) -> Mapping[str, Any]:
    modes = torch_inductor.modes()
    if not isinstance(mode, str) or mode not in modes:
        raise LazyfxError(f"mode is {shown(mode)}; it must be one of {', '.join(map(repr, modes))}")
    return torch_inductor.mode_settings(mode)


def _checked(name: str, value: Any) -> Scalar:
    expected = SETTINGS[name]
    if isinstance(expected, Float) and type(value) is int and abs(value) < 2**53:
        value = float(value)
    if reason := mismatch_reason(value, expected):
        raise NamedValueError(f"the Inductor setting {name}", reason)
    found: Scalar = value
    return found
