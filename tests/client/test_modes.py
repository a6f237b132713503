"""Thread-local modes of the caller apply to captures, also when many graphs are compiled at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
import torch
from harness import DCE
from torch import nn
from torch.overrides import TorchFunctionMode

import lazyfx


class Traced(nn.Module):
    """What torch.export makes of it depends on the modes that it is called under."""

    def forward(self, x):  # type: ignore[no-untyped-def]
        return x @ x.mT + torch.ones(2) * (1.0 + torch.is_grad_enabled())


class _Doubling(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ones:
            return torch.full(args, 2.0)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "none": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype": _dtype,
    "default device": lambda: torch.device("meta"),
    "function mode": _Doubling,
}


@pytest.fixture(scope="module")
def server(launch_for_file):  # type: ignore[no-untyped-def]
    return launch_for_file("--workers", "1")


def _example(mode: str) -> tuple[torch.Tensor]:
    return (torch.ones(2, 3, device="meta" if mode == "default device" else "cpu"),)


@pytest.mark.parametrize("mode", MODES)
def test_many_graphs_are_captured_as_a_single_one_is(client: lazyfx.Client, mode: str) -> None:
    module, inputs = Traced(), _example(mode)
    plain = client.compile(module, [DCE], _example("none")).digest
    with MODES[mode]():
        alone = client.compile(module, [DCE], inputs).digest
        found = dict(client.compile_many([(module, [DCE], inputs)]))
    assert found[0].digest == alone  # type: ignore[union-attr]
    assert (alone == plain) == (mode == "none")


def test_graphs_are_captured_when_they_are_passed(client: lazyfx.Client) -> None:
    module, inputs = Traced(), _example("none")
    with torch.no_grad():
        alone = client.compile(module, [DCE], inputs).digest
        later = client.compile_many([(module, [DCE], inputs)])
    assert dict(later)[0].digest == alone  # type: ignore[union-attr]


async def test_the_asynchronous_client_captures_under_the_callers_modes_too(server) -> None:  # type: ignore[no-untyped-def]
    module, inputs = Traced(), _example("none")
    async with lazyfx.connect_async(server.address) as client:
        with torch.no_grad():
            alone = (await client.compile(module, [DCE], inputs)).digest
            later = client.compile_many([(module, [DCE], inputs)])
        assert [handle.digest async for _, handle in later] == [alone]  # type: ignore[union-attr]
