"""What torch's tracing sees of a process beside the graph: read here, put in place there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any, Final

import torch

from lazyfx.errors import LazyfxError
from lazyfx.native import named_values
from lazyfx.v1 import compiler_pb2 as pb

State = bool | int | str

_DTYPES: Final[Mapping[str, torch.dtype]] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
_AUTOCAST_DEVICES: Final = ("cpu", "cuda")
_FILL: Final = "fill_uninitialized_memory"  # a property that the module grows when it is imported


def read_states(device_types: Iterable[str]) -> list[pb.PassOption]:
    """The states of this process and thread, sorted by name.

    Args:
        device_types: Types of the graph's devices, e.g. {"cpu", "cuda"}.
    """
    states: dict[str, State] = {
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
    return named_values.to_messages(states)


def enter_states(states: Iterable[pb.PassOption], stack: ExitStack) -> None:
    """Put states in place until the stack is closed; meant for a process that ends after it.

    Raises:
        LazyfxError: A state is not known, or has a value that it cannot have.
    """
    found: dict[str, Any] = dict(named_values.from_messages(states, "states"))
    deterministic = {k: found.pop(k, False) for k in ("deterministic", "deterministic_warn_only")}
    _expect(deterministic, bool)
    torch.use_deterministic_algorithms(
        deterministic["deterministic"], warn_only=deterministic["deterministic_warn_only"]
    )
    # Inference mode switches gradients too, on as well as off: the grad mode comes after it.
    for name, value in sorted(found.items(), key=lambda state: state[0] != "inference"):
        setter = _SETTERS.get(name)
        if setter is None:
            raise LazyfxError(f"states: {name!r} is not known; use a server of the same release")
        try:
            setter(value, stack)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise LazyfxError(f"states: {name} cannot be {value!r}") from error


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _expect(values: Mapping[str, Any], kind: type) -> None:
    for name, value in values.items():
        if not isinstance(value, kind):
            raise LazyfxError(f"states: {name} cannot be {value!r}")


def _truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def _set_threads(value: Any, _stack: ExitStack) -> None:
    if not isinstance(value, int) or not 1 <= value <= 1024:
        raise ValueError(value)
    torch.set_num_threads(value)


def _set_autocast(device: str) -> Callable[[Any, ExitStack], None]:
    def put(value: Any, _stack: ExitStack) -> None:
        torch.set_autocast_enabled(device, bool(value))
        if value:
            torch.set_autocast_dtype(device, _DTYPES[value])

    return put


def _set_cudnn(name: str) -> Callable[[Any, ExitStack], None]:
    return lambda value, _stack: setattr(torch.backends.cudnn, name, _truth(value))


_SETTERS: Final[Mapping[str, Callable[[Any, ExitStack], None]]] = {
    "autocast_cache": lambda value, _: torch.set_autocast_cache_enabled(_truth(value)),
    "autocast_cpu": _set_autocast("cpu"),
    "autocast_cuda": _set_autocast("cuda"),
    "cudnn_benchmark": _set_cudnn("benchmark"),
    "cudnn_deterministic": _set_cudnn("deterministic"),
    "cudnn_tf32": _set_cudnn("allow_tf32"),
    "default_dtype": lambda value, _: torch.set_default_dtype(_DTYPES[value]),
    "deterministic_fill": lambda value, _: setattr(torch.utils.deterministic, _FILL, _truth(value)),
    "grad": lambda value, stack: stack.enter_context(torch.set_grad_enabled(_truth(value))),
    "inference": lambda value, stack: stack.enter_context(torch.inference_mode(_truth(value))),
    "matmul_precision": lambda value, _: torch.set_float32_matmul_precision(value),
    "threads": _set_threads,
}
