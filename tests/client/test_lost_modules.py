"""Handles whose module the server has lost, and clients whose server was down."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import DCE, graph_of
from torch import nn

import lazyfx
from lazyfx.errors import LazyfxError, UnavailableError

X = torch.ones(2)


class Table(nn.Module):
    """Has something to fold, so its values are sent."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.sin(self.table) * 2


@pytest.fixture
def address() -> str:
    """A port to which a server can come back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def lose_tenant_key(store: Path) -> None:
    (store / ".keys" / "tenants.key").unlink()


def lose_all_but_keys(store: Path) -> None:
    for each in store.iterdir():
        if each.is_file():
            each.unlink()
        elif each.name != ".keys":
            shutil.rmtree(each)


def lose_all(store: Path) -> None:
    shutil.rmtree(store)


TOUCHES: dict[str, Callable[[Any], Any]] = {
    "code": lambda remote: remote.code,
    "graph": lambda remote: remote.graph_module(),
    "call": lambda remote: remote(X),
    "picture": lambda remote: remote.picture(),
    "provenance": lambda remote: remote.provenance("graph"),
}


@pytest.mark.parametrize(
    "lose",
    [lose_tenant_key, pytest.param(lose_all_but_keys, marks=pytest.mark.slow), lose_all],
)
def test_handles_compile_again_what_was_lost(
    launch: Any, address: str, tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    store = tmp_path / "store"
    flags = ("--workers", "1", "--listen", address)
    server = launch(*flags, store=store)
    table = Table()
    program = torch.export.export(table, (X,))
    with lazyfx.connect(address) as client:
        handles = {name: client.compile(graph_of(2.5), [DCE]) for name in TOUCHES}
        folded = client.compile(program, ["constant_fold"])
        kept = client.compile(program, ["constant_fold"])
        expected = program.module()(X)
        assert torch.equal(kept(X), expected)
        first = handles["code"].key
        assert server.stop() == 0
        lose(store)
        server = launch(*flags, store=store)
        for name, remote in handles.items():
            assert TOUCHES[name](remote) is not None
        assert torch.equal(handles["call"](X), graph_of(2.5)(X))
        assert (handles["code"].key == first) == (lose is lose_all_but_keys)
        assert torch.equal(folded(X), expected)
        assert torch.equal(kept.graph_module()(X), expected)
        assert len({remote.key for remote in handles.values()}) == 1


def test_values_that_changed_since_are_not_used_silently(
    launch: Any, address: str, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    flags = ("--workers", "1", "--listen", address)
    server = launch(*flags, store=store)
    program = torch.export.export(Table(), (X,))
    with lazyfx.connect(address) as client:
        folded = client.compile(program, ["constant_fold"])
        server.stop()
        lose_all(store)
        launch(*flags, store=store)
        program.state_dict["table"].add_(1)
        with pytest.raises(LazyfxError, match="compile again"):
            folded(X)
        again = client.compile(program, ["constant_fold"])
        assert torch.allclose(again(X), program.module()(X))


def test_a_server_that_comes_back_is_found_soon(launch: Any, address: str, tmp_path: Path) -> None:
    flags = ("--workers", "1", "--listen", address)
    server = launch(*flags, store=tmp_path / "store")
    with lazyfx.connect(address, timeout=20) as client:
        client.passes()
        server.process.kill()
        server.process.wait()
        for _ in range(12):  # enough failures to make a backoff long
            with pytest.raises(UnavailableError):
                client.passes()
        launch(*flags, store=tmp_path / "store")
        tries = 0
        while True:
            try:
                assert client.passes()
                break
            except UnavailableError:
                # Each takes a second or so; with gRPC's own backoff it is dozens.
                tries += 1
                assert tries < 8
