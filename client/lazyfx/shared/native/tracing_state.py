"""Reads and applies process state on which torch's tracing depends besides the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import torch

from lazyfx.errors import LazyfxError
from lazyfx.shared.native import named_values
from lazyfx.shared.native.named_values import NamedValueError, Scalar
from lazyfx.shared.native.setting_types import Bool, Int, ValueType, Words, mismatch_reason
from lazyfx.v1 import compiler_pb2 as pb

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
_AUTOCAST_DEVICES: Final = ("cpu", "cuda")
FIELD: Final = "native.states"
STATES: Final[Mapping[str, ValueType]] = {
    **dict.fromkeys(
        (
            *("autocast_cache", "cudnn_benchmark", "cudnn_deterministic", "cudnn_tf32"),
            *("deterministic", "deterministic_fill", "deterministic_warn_only"),
            *("grad", "inference"),
        ),
        Bool(),
    ),
    # "" means that autocast is off.
    **{f"autocast_{device}": Words(("", *_DTYPES)) for device in _AUTOCAST_DEVICES},
    "default_dtype": Words(tuple(_DTYPES)),
    "matmul_precision": Words(("highest", "high", "medium")),
    "threads": Int(1, 1024),
}
_FILL: Final = "fill_uninitialized_memory"  # a property that the module gets on import


def read_states(device_types: Iterable[str]) -> list[pb.PassOption]:
    """Read the states of this process and thread, sorted by name.

    Args:
        device_types: Types of the graph's devices, e.g. {"cpu", "cuda"}.

    Raises:
        NamedValueError: A state has a value that cannot be sent; says what can.
    """
    states: dict[str, Scalar] = {
        "autocast_cache": torch.is_autocast_cache_enabled(),
        "default_dtype": _dtype_name(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_fill": getattr(torch.utils.deterministic, _FILL),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
    }
    for device in sorted({"cpu", *device_types} & set(_AUTOCAST_DEVICES)):
        enabled = torch.is_autocast_enabled(device)
        states[f"autocast_{device}"] = (
            _dtype_name(torch.get_autocast_dtype(device)) if enabled else ""
        )
    if "cuda" in set(device_types):
        states["cudnn_benchmark"] = torch.backends.cudnn.benchmark
        states["cudnn_deterministic"] = torch.backends.cudnn.deterministic
        states["cudnn_tf32"] = torch.backends.cudnn.allow_tf32
    for name, value in states.items():
        if reason := mismatch_reason(value, STATES[name]):
            raise NamedValueError(f"the state {name} of this process", reason)
    return named_values.to_messages(states)


def from_proto(states: Iterable[pb.PassOption]) -> dict[str, Scalar]:
    """States of a request.

    Raises:
        NamedValueError: A state is unknown, or its value has the wrong type.
    """
    return named_values.read_typed(states, FIELD, STATES)


def enter_states(states: Iterable[pb.PassOption], stack: ExitStack) -> None:
    """Apply states until the stack is closed; intended for a process that exits afterwards.

    Raises:
        LazyfxError: As in `from_proto`, or a state is not available here.
    """
    found: dict[str, Any] = dict(from_proto(states))
    torch.use_deterministic_algorithms(
        found.pop("deterministic", False), warn_only=found.pop("deterministic_warn_only", False)
    )
    # Inference mode also changes grad mode, when entered and when left, so grad mode comes after
    # it.
    for name, value in sorted(found.items(), key=lambda state: state[0] != "inference"):
        try:
            _SETTERS[name](value, stack)
        except (TypeError, ValueError, RuntimeError) as error:
            raise LazyfxError(f"{FIELD}[{name}] cannot be {value!r} on this server") from error


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _set_autocast(device: str) -> Callable[[Any, ExitStack], None]:
    def put(value: Any, _stack: ExitStack) -> None:
        torch.set_autocast_enabled(device, value != "")
        if value:
            torch.set_autocast_dtype(device, _DTYPES[value])

    return put


def _set_cudnn(name: str) -> Callable[[Any, ExitStack], None]:
    return lambda value, _stack: setattr(torch.backends.cudnn, name, value)


_SETTERS: Final[Mapping[str, Callable[[Any, ExitStack], None]]] = {
    "autocast_cache": lambda value, _: torch.set_autocast_cache_enabled(value),
    "autocast_cpu": _set_autocast("cpu"),
    "autocast_cuda": _set_autocast("cuda"),
    "cudnn_benchmark": _set_cudnn("benchmark"),
    "cudnn_deterministic": _set_cudnn("deterministic"),
    "cudnn_tf32": _set_cudnn("allow_tf32"),
    "default_dtype": lambda value, _: torch.set_default_dtype(_DTYPES[value]),
    "deterministic_fill": lambda value, _: setattr(torch.utils.deterministic, _FILL, value),
    "grad": lambda value, stack: stack.enter_context(torch.set_grad_enabled(value)),
    "inference": lambda value, stack: stack.enter_context(torch.inference_mode(value)),
    "matmul_precision": lambda value, _: torch.set_float32_matmul_precision(value),
    "threads": lambda value, _: torch.set_num_threads(value),
}
