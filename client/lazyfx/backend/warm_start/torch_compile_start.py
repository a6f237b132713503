"""Private names of dynamo that tell when it begins to compile; imported only here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch._dynamo import callback, eval_frame

__all__ = ["calls_of_torch_compile", "on_compile_start"]


def on_compile_start(act: Callable[[], None]) -> None:
    """Act whenever dynamo begins to compile, in the thread that does.

    `torch._dynamo.reset` forgets it.
    """

    def started(_: Any) -> None:
        act()

    callback.on_compile_start(started)


def calls_of_torch_compile(backend: Callable[..., Any]) -> Iterator[Mapping[str, Any]]:
    """`mode` and `options`, if given, of each call of torch.compile with a backend."""
    known: Mapping[int, Any] = getattr(eval_frame, "cached_backends", {})
    for made in list(known.values()):
        given = getattr(made, "kwargs", None)
        if getattr(made, "compiler_fn", None) is backend and isinstance(given, Mapping):
            yield given
