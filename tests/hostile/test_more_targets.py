"""Targets that an operator adds: which are accepted, which are refused at startup, and the messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nursery
import pytest
import torch
from server.harness import connected
from torch.fx import Graph, GraphModule

import lazyfx
from lazyfx.errors import InvalidRequestError, UnsupportedGraphError
from lazyfx.shared.wire.targets import user_targets
from lazyfx.v1 import compiler_pb2 as pb

if TYPE_CHECKING:
    from servers import RunningServer

NORMS = """
import os
from torch.nn.functional import relu

class Place:
    def method(self): ...

def twice(x, times=2.0):
    return x * times

def __hidden(x): ...
also = twice
"""
NAME = "lazyfx_norms.twice"
GOOD = {"functions": {NAME: "(x: Tensor, times: float = ...)"}}


@pytest.fixture
def norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "lazyfx_norms.py").write_text(NORMS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    user_targets.install(user_targets.parse("{}"))
    sys.modules.pop("lazyfx_norms", None)


def written(folder: Path, table: object) -> Path:
    path = folder / "further.json"
    path.write_text(table if isinstance(table, str) else json.dumps(table))
    return path


def called(*args: object) -> GraphModule:
    import lazyfx_norms  # type: ignore[import-not-found]

    graph = Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(lazyfx_norms.twice, (x, *args)))
    return GraphModule(torch.nn.Module(), graph)


def environment(folder: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_what_an_operator_adds_is_compiled_and_listed(
    norms: Path, launch: Callable[..., RunningServer]
) -> None:
    path = written(norms, GOOD)
    with_it = launch("--allow-targets", str(path), environment=environment(norms))
    with lazyfx.connect(with_it.address) as client:
        with pytest.raises(UnsupportedGraphError, match="not in the table"):
            client.compile(called(), passes=["dead_code_elimination"])
        lazyfx.allow_targets(path)
        module = client.compile(called(3.0), passes=["dead_code_elimination"])
        torch.testing.assert_close(module(torch.ones(2)), torch.full((2,), 3.0))
        assert "lazyfx_norms" in module.code
        with pytest.raises(InvalidRequestError, match="times: float"):
            client.compile(called("evil"), passes=["dead_code_elimination"])
    with connected(with_it.address) as stub:
        assert stub.GetServerInfo(pb.GetServerInfoRequest()).added_targets == [NAME]


def test_it_is_part_of_every_key(norms: Path, launch: Callable[..., RunningServer]) -> None:
    graph = torch.fx.symbolic_trace(lambda x: torch.relu(x))
    path, keys = written(norms, GOOD), set()
    for flags in ((), ("--allow-targets", str(path))):
        server = launch(*flags, environment=environment(norms))
        with lazyfx.connect(server.address) as client:
            keys.add(client.compile(graph, passes=[]).key)
        server.stop()
    assert len(keys) == 2


SIGNATURE = "(x: Tensor)"
BAD: dict[str, object] = {
    "no JSON": "{",
    "a list": [],
    "an unknown section": {"functions": {}, "modules": {}},
    "a signature that is no text": {"functions": {NAME: 1}},
    "no signature": {"functions": {NAME: "x"}},
    "a signature with code": {"functions": {NAME: "(x: __import__('os').system('true'))"}},
    "an unknown type": {"functions": {NAME: "(x: Evil)"}},
    "an argument without a type": {"functions": {NAME: "(x)"}},
    "a walk": {"functions": {"lazyfx_norms.os.system": SIGNATURE}},
    "a walk into a class": {"functions": {"lazyfx_norms.Place.method": SIGNATURE}},
    "a name that is only imported there": {"functions": {"lazyfx_norms.relu": SIGNATURE}},
    "another name of it": {"functions": {"lazyfx_norms.also": SIGNATURE}},
    "a double underscore": {"functions": {"lazyfx_norms.__hidden": SIGNATURE}},
    "a prefix": {"functions": {"lazyfx_norms.*": SIGNATURE}},
    "no module": {"functions": {"lazyfx_no_such.twice": SIGNATURE}},
    "no function": {"functions": {"lazyfx_norms.none": SIGNATURE}},
    "Python's own": {"functions": {"os.system": SIGNATURE}},
    "Python's own, deeper": {"functions": {"importlib.util.find_spec": SIGNATURE}},
    "in the table already": {"functions": {"torch.relu": SIGNATURE}},
    "a method of objects": {"methods": {"__reduce__": "(self: Self)"}},
    "no method": {"methods": {"no_such": "(self: Self)"}},
}


@pytest.mark.parametrize("case", BAD)
def test_a_malformed_file_is_refused(norms: Path, case: str) -> None:
    from lazyfx_server.security import allowed

    text = written(norms, BAD[case]).read_text()
    with pytest.raises(ValueError, match=r".+"):
        allowed.allow_user_targets(user_targets.parse(text))
    assert allowed.user_target_names() == ()


def test_a_server_with_a_malformed_file_does_not_start(norms: Path) -> None:
    path = written(norms, BAD["a walk"])
    command = [
        "-m", "lazyfx_server", "--allow-targets", str(path),
        "--listen", "127.0.0.1:0", "--metrics-port", "0", "--store-path", "",
    ]  # fmt: skip
    done = nursery.run("server", command, env={**os.environ, **environment(norms)}, timeout=60)
    assert done.returncode != 0
    assert "--allow-targets" in done.stderr
    assert "lazyfx_norms.os" in done.stderr
