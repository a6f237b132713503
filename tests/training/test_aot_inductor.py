"""AOTInductor packages for serving: made without weights, loaded with torch alone."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import models
import nursery
import pytest
import torch
from harness import artifact, compile_request, connected, metrics, refused, total
from hostile.test_identity import new_token
from torch import nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves
from training.counting import native_compiles
from typer.testing import CliRunner

import lazyfx
from lazyfx.cli.application import app
from lazyfx.v1 import compiler_pb2 as pb

LOADER = """
import sys, torch
inputs, outputs = torch.load(sys.argv[2])
with torch.no_grad():
    found = [torch._inductor.aoti_load_package(sys.argv[1])(*given) for given in inputs]
torch.testing.assert_close(found, outputs, rtol=1e-4, atol=1e-5)
assert not any(name.partition(".")[0] in ("lazyfx", "transformers") for name in sys.modules)
"""


def check_alone(
    path: Path, model: nn.Module, calls: list[Mapping[str, torch.Tensor]], folder: Path
) -> None:
    """Load a package in a process that has torch alone, and compare with the model."""
    with torch.no_grad():
        outputs = [tree_leaves(model(**call)) for call in calls]
    torch.save(([tuple(call.values()) for call in calls], outputs), folder / "expected")
    run = nursery.run("inductor", ["-c", LOADER, str(path), str(folder / "expected")])
    assert run.returncode == 0, run.stderr


class Holding(nn.Module):
    """Small parameters, equal ones, a scalar and a plain tensor: all that torch likes to inline."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.ones, self.more = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.register_buffer("zeros", torch.zeros(4))
        self.plain = torch.full((4,), 3.0)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.relu(self.first(x)) @ self.second.weight * self.scale
        return {"y": y * self.ones + self.zeros, "z": y * self.more.sum() + self.plain}


class Writing(nn.Module):
    """Writes into its buffers in many ways, and reads them before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n", torch.tensor([1.0, 2.0]))
        self.register_buffer("one", torch.tensor([1.0]))
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("rows", torch.arange(6.0).reshape(3, 2))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        before = self.rows.sum() + self.count
        self.n.add_(1)
        self.one.mul_(2)
        self.count += 1
        self.rows[0] = x[0]
        self.rows[1:].add_(self.n)
        self.rows.index_put_((torch.tensor([2]),), x[:1], accumulate=True)
        y = self.norm(x) + self.n * self.one + self.count
        return {"y": y, "rows": self.rows * 1, "before": before, "n": self.n + 1}


class Overlapping(nn.Module):
    """Writes into one view of its memory and reads another."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.arange(4.0)
        self.register_buffer("a", whole[:2])
        self.register_buffer("b", whole[1:3])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a.add_(1)
        return x + self.b


STATEFUL_LOADER = """
import sys, torch
calls, outputs = torch.load(sys.argv[2])
package = torch._inductor.aoti_load_package(sys.argv[1])
with torch.no_grad():
    found = [package(*given) for given in calls]
torch.testing.assert_close(found, outputs, rtol=1e-4, atol=1e-5)
"""


def test_what_a_graph_writes_is_there_at_the_next_call(native_server: Any, tmp_path: Path) -> None:
    model, calls = Writing().train(), [(torch.randn(4, 2),) for _ in range(3)]
    with lazyfx.connect(native_server.address, timeout=280) as client:
        remote = client.compile(model, example_inputs=calls[0])
        path = remote.save_aot_inductor(tmp_path / "writing.pt2")
        with torch.no_grad():
            outputs = [tree_leaves(model(*call)) for call in calls]
        torch.save((calls, outputs), tmp_path / "expected")
        command = ["-c", STATEFUL_LOADER, str(path), str(tmp_path / "expected")]
        run = nursery.run("inductor", command)
        assert run.returncode == 0, run.stderr


def test_memory_that_is_shared_and_written_is_refused(native_server: Any, tmp_path: Path) -> None:
    with lazyfx.connect(native_server.address, timeout=280) as client:
        overlapping = client.compile(Overlapping(), example_inputs=(torch.ones(2),))
        with pytest.raises(lazyfx.LazyfxError, match="share memory"):
            overlapping.save_aot_inductor(tmp_path / "overlapping.pt2")


class Late(torch.nn.Module):
    """Uses an input after another one is written."""

    def forward(self, cache: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        cache.add_(1)
        return x * 2


def test_an_input_that_is_used_after_another_is_written(native_server: Any, tmp_path: Path) -> None:
    with lazyfx.connect(native_server.address, timeout=280) as client:
        given = (torch.ones(2), torch.ones(2))
        late = client.compile(torch.export.export(Late(), given))
        with pytest.raises(lazyfx.LazyfxError, match="writes to input 0 and then uses input 1"):
            late.save_aot_inductor(tmp_path / "late.pt2")


def sent_by(server: Any, remote: lazyfx.RemoteModule) -> bytes:
    """The artifact as the server sends it."""
    wanted = pb.GetArtifactRequest(
        module_key=bytes.fromhex(remote.key),
        kind=pb.ARTIFACT_KIND_AOT_INDUCTOR,
        native=remote._flows.aot_request(None, None),
    )
    with connected(server.address) as stub:
        return b"".join(part.chunk.data for part in stub.GetArtifact(wanted))


def test_values_are_put_in_by_the_client_and_none_is_baked_in(
    native_server: Any, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    model = Holding().eval()
    example = {"x": torch.randn(3, 4)}
    before = native_compiles(native_server)
    with lazyfx.connect(native_server.address, timeout=280) as client:
        remote = client.compile(model, ["dead_code_elimination"], example)
        path = remote.save_aot_inductor(tmp_path / "first.pt2")
        check_alone(path, model, [example], tmp_path)
        assert remote.provenance("aot_inductor").kind == "aot_inductor"

        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.copy_(torch.randn_like(tensor))
        again = client.compile(model, ["dead_code_elimination"], example)
        other = again.save_aot_inductor(tmp_path / "second.pt2")
        check_alone(other, model, [example], tmp_path)
    sent = sent_by(native_server, again)
    package = pb.AotPackage.FromString(sent)
    weight = model.first.weight.detach().numpy().tobytes()
    assert weight not in sent
    with zipfile.ZipFile(other) as whole:
        assert weight in whole.read(package.values)
    # Other values are the same graph: one compile serves both.
    assert again.key == remote.key
    assert native_compiles(native_server) == before + 1
    samples = metrics(native_server.metrics_url)
    assert total(samples, "lazyfx_artifacts_total", kind="aot_inductor", source="cached") == 2


def test_from_the_shell(native_server: Any, tmp_path: Path) -> None:
    model, example = Holding().eval(), {"x": torch.randn(3, 4)}
    torch.export.save(torch.export.export(model, (), example), tmp_path / "model.pt2")
    path = tmp_path / "served.pt2"
    command = ["optimize", str(tmp_path / "model.pt2"), "--emit", "aot_inductor", "-o", str(path)]
    # The graph and passes of the test above: where that ran before, this compiles nothing.
    command += ["--passes", "dead_code_elimination"]
    address = native_server.address
    ran = CliRunner().invoke(app, [*command, "--address", address, "--timeout", "280"])
    assert ran.exit_code == 0, ran.output
    check_alone(path, model, [example], tmp_path)


@pytest.mark.slow  # every kind belongs to its tenant: tests/hostile/test_tenants.py
def test_it_is_there_for_the_tenant_alone_that_asked(
    launch: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tmp_path / "tokens"
    alice, bob = (new_token(tokens, name) for name in ("alice", "bob"))
    server = launch("--native", "--workers", "1", "--tokens", str(tokens))
    program = torch.export.export(Holding().eval(), (), {"x": torch.randn(3, 4)})
    monkeypatch.setenv("LAZYFX_TOKEN", alice)
    with lazyfx.connect(server.address, timeout=280) as client:
        made = client.compile(program)
        made.save_aot_inductor(tmp_path / "served.pt2")
        wanted = pb.GetArtifactRequest(
            module_key=bytes.fromhex(made.key),
            kind=pb.ARTIFACT_KIND_AOT_INDUCTOR,
            native=made._flows.aot_request(None, None),
        )
    with connected(server.address) as stub:
        shown = [("authorization", f"Bearer {bob}")]
        refusal = refused(lambda: list(stub.GetArtifact(wanted, metadata=shown, timeout=60)))
    assert refusal.code == "NOT_FOUND"
    assert native_compiles(server) == 1


@pytest.mark.slow
def test_a_real_model_with_symbolic_sizes(native_server: Any, tmp_path: Path) -> None:
    model, example = models.bert(layers=1)
    batch = Dim("batch", min=2, max=64)
    program = torch.export.export(
        model, (), example, dynamic_shapes={name: {0: batch} for name in example}
    )
    with lazyfx.connect(native_server.address, timeout=280) as client:
        remote = client.compile(program)
        path = remote.save_aot_inductor(tmp_path / "bert.pt2")
    larger = {name: value.repeat(3, 1) for name, value in example.items()}
    check_alone(path, model, [example, larger], tmp_path)


def test_it_says_what_is_missing(native_server: Any, server: Any) -> None:
    with connected(native_server.address) as stub:
        graph = torch.fx.symbolic_trace(lambda x: x + 1)
        key = stub.Compile(compile_request(graph)).module_key
        refusal = refused(lambda: artifact(stub, key, pb.ARTIFACT_KIND_AOT_INDUCTOR))
        assert refusal.code == "INVALID_ARGUMENT"
        assert "native" in refusal.fields
    with lazyfx.connect(native_server.address) as client:
        remote = client.compile(graph)
        with pytest.raises(lazyfx.errors.PreconditionError, match="no shape"):
            remote.save_aot_inductor("never.pt2")
        with pytest.raises(lazyfx.LazyfxError, match="not been fetched"):
            remote.provenance("aot_inductor")
        with pytest.raises(lazyfx.LazyfxError, match=r"cpp\.cxx"):
            remote.save_aot_inductor("never.pt2", options={"cpp.cxx": "evil"})
    with (
        lazyfx.connect(server.address) as client,
        pytest.raises(lazyfx.errors.PreconditionError, match="--native"),
    ):
        client.compile(graph).save_aot_inductor("never.pt2")
    assert not Path("never.pt2").exists()
