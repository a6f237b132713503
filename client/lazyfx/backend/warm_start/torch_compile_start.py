"""Private names of dynamo that tell when it begins to compile; imported only here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch._dynamo import callback, eval_frame
from torch._dynamo.convert_frame import _compile

__all__ = ["compiling_with", "on_compile_start"]


def on_compile_start(act: Callable[[], None]) -> None:
    """Act whenever dynamo begins to compile, in the thread that does.

    `torch._dynamo.reset` forgets it.
    """

    def started(_: Any) -> None:
        act()

    callback.on_compile_start(started)


def compiling_with(backend: Callable[..., Any]) -> Mapping[str, Any] | None:
    """`mode` and `options`, if given, of the call of torch.compile that dynamo now compiles for.

    To be called by what `on_compile_start` calls, which dynamo does not tell the backend: it is
    read from the frame of dynamo's function.

    Returns:
        None if that call is for another backend.
    """
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not _compile.__code__:
        frame = frame.f_back
    if frame is None:
        return None
    made = eval_frame.innermost_backend(frame.f_locals["compiler_fn"])
    given = getattr(made, "kwargs", None)
    if getattr(made, "compiler_fn", None) is not backend or not isinstance(given, Mapping):
        return None
    return given
