"""The options of `torch.compile(backend="lazyfx")`, and where they are read from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, get_args

from lazyfx.capture.priorities import PRIORITIES, Priority
from lazyfx.errors import AddressError, LazyfxError
from lazyfx.shared.addresses import DEFAULT_ADDRESS, read_addresses
from lazyfx.shared.native.torch_inductor import has_setting
from lazyfx.shared.pass_specs import PassTuple, normalize
from lazyfx.shared.printable import shown
from lazyfx.shared.suggesting import closest

Compile = Literal["inductor", "eager"]
BlockCompile = Literal["each", "once"]
OnError = Literal["local", "eager", "raise"]
Agreement = Literal["each", "all"]
InductorValue = bool | int | float | str

_PREFIX: Final = "LAZYFX_"


@dataclass(frozen=True)
class BackendOptions:
    """Options of the backend, from `options={...}`, then the environment, then these defaults.

    Attributes:
        address: The server: "host:port", or "host" for port 8700; several replicas:
            "a:8700,b:8700" or "dns:///name:8700".
        passes: Graph passes that the server runs first, in order.
        compile: "inductor": run the native artifact that the server's Inductor compiled; "eager":
            run the graph after the passes, rebuilt from graph data.
        equal_blocks: "once" compiles equal layers of a graph without gradients once, and calls that
            code for each of them; "each" compiles the graph as a whole.
        on_error: If the server cannot help: "local" compiles here with Inductor (or, with
            compile="eager", runs the graph uncompiled), "eager" runs the graph uncompiled, "raise"
            raises.
        wait: Wait for the server; otherwise run the graph uncompiled until the result arrives.
        timeout: Seconds that one graph may take before the job continues without the server.
        agreement: "all" makes all ranks of the job's process group use the remote result
            only if every one of them has it; "each" lets each rank decide.
        record: A folder in which each graph is recorded for `lazyfx warm`; empty for none.
        mode: A mode of torch.compile, e.g. "max-autotune-no-cudagraphs".
        send_values: Send tensor values to any pass for which the server requests them; otherwise
            only to lazyfx's own passes that read values.
        priority: How urgent the compiles are, among all of this caller: "interactive", "batch" or
            "prewarm".
        prefetch: Receive what this job asked for when it last ran, before it asks again.
        inductor: Settings of Inductor, by their names in torch._inductor.config.
    """

    address: str = DEFAULT_ADDRESS
    passes: PassTuple = ()
    compile: Compile = "inductor"
    equal_blocks: BlockCompile = "each"
    on_error: OnError = "local"
    wait: bool = True
    timeout: float = 600.0
    agreement: Agreement = "each"
    record: str = ""
    mode: str | None = None
    send_values: bool = False
    priority: Priority = "interactive"
    prefetch: bool = True
    inductor: Mapping[str, InductorValue] = field(default_factory=dict)


_CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "compile": get_args(Compile),
    "equal_blocks": get_args(BlockCompile),
    "on_error": get_args(OnError),
    "agreement": get_args(Agreement),
    "priority": PRIORITIES,
}
_FROM_ENVIRONMENT: Final = tuple(
    f.name for f in fields(BackendOptions) if f.name not in {"mode", "inductor"}
)
_DEFAULTS: Final = BackendOptions()


def read_options(given: Mapping[str, Any] | None, mode: str | None = None) -> BackendOptions:
    """Read the options of one `torch.compile` call.

    Args:
        given: `options=` of torch.compile. Names that are not options of the backend are
            settings of Inductor, as with backend="inductor"; "mode" stands for
            `mode=`, which torch.compile does not accept together with options.
        mode: `mode=` of torch.compile.

    Raises:
        ValueError: An option has an invalid value; names the option.
    """
    values: dict[str, Any] = {}
    for name in _FROM_ENVIRONMENT:
        text = os.environ.get(_PREFIX + name.upper())
        if text:
            values[name] = _READERS[name](_PREFIX + name.upper(), text)
    inductor: dict[str, InductorValue] = {}
    for name, value in (given or {}).items():
        if name == "mode":
            mode = value
        elif name in _READERS:
            values[name] = _READERS[name](f"options[{name!r}]", value)
        else:
            setting = name.replace("-", "_")
            if (meant := closest(name, _READERS)) and not has_setting(setting):
                raise ValueError(f"options has no {shown(name)}; did you mean {meant!r}?")
            inductor[setting] = value
    if values.get("agreement") == "all" and values.get("wait") is False:
        raise ValueError("agreement='all' requires wait=True: ranks can agree only if they wait")
    return replace(_DEFAULTS, mode=None if mode == "default" else mode, inductor=inductor, **values)


def _one_of(name: str) -> Callable[[str, Any], str]:
    choices = _CHOICES[name]

    def read(where: str, value: Any) -> str:
        if value not in choices:
            raise ValueError(f"{where} is {value!r}; it must be one of {', '.join(choices)}")
        return str(value)

    return read


def _address(where: str, value: Any) -> str:
    try:
        return read_addresses(str(value))
    except AddressError as error:
        raise ValueError(f"{where}: {error}") from error


def _passes(where: str, value: Any) -> PassTuple:
    try:
        return normalize(value)
    except LazyfxError as error:
        raise ValueError(f"{where}: {error}") from error


def _flag(where: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise ValueError(f"{where} is {value!r}; it must be true or false") from None


def _timeout(where: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{where} is {value!r}; it must be a number of seconds greater than 0")
    return seconds


_READERS: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    "address": _address,
    "passes": _passes,
    "compile": _one_of("compile"),
    "equal_blocks": _one_of("equal_blocks"),
    "on_error": _one_of("on_error"),
    "wait": _flag,
    "send_values": _flag,
    "prefetch": _flag,
    "timeout": _timeout,
    "agreement": _one_of("agreement"),
    "priority": _one_of("priority"),
    "record": lambda _where, value: str(value),
}
