"""The handles of each kind of input that can be compiled."""

from __future__ import annotations

import copy
import inspect
import pickle
from xml.etree import ElementTree as ET

import nursery
import pytest
import torch
from harness import CSE, DCE, graph_of
from torch import nn
from torch.fx import GraphModule, symbolic_trace

import lazyfx
from lazyfx.artifacts.artifact_table import ARTIFACT_KINDS
from lazyfx.errors import LazyfxError


class Scaled(nn.Module):
    """Nested inputs and outputs, a buffer that is written, a keyword with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pair, *, scale=None):
        x, y = pair
        z = self.linear(x) + y
        unused = z + 99  # noqa: F841 - for dead code elimination
        if scale is not None:
            z = z * scale
        return {"sum": z, "both": (z, x)}


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


@pytest.fixture
def model() -> Scaled:
    torch.manual_seed(0)
    return Scaled().eval()


@pytest.fixture
def inputs():
    return (torch.randn(2, 4), torch.randn(2, 4))


@pytest.fixture
def program(model, inputs):
    return torch.export.export(model, (inputs,), {"scale": torch.tensor(2.0)})


def same(left, right) -> bool:
    return (
        torch.equal(left["sum"], right["sum"])
        and type(left["both"]) is type(right["both"])
        and all(torch.equal(a, b) for a, b in zip(left["both"], right["both"], strict=True))
    )


def test_an_exported_program_is_called_as_its_module_is(client, program, inputs):
    remote = client.compile(program, [DCE, CSE])
    local = program.module()
    scale = torch.tensor(3.0)
    assert same(remote(inputs, scale=scale), local(inputs, scale=scale))
    assert remote.report.nodes_after < remote.report.nodes_before


BAD_CALLS = {
    "another shape": lambda m, x: m((torch.ones(3, 4), torch.ones(3, 4)), scale=torch.ones(())),
    "another structure": lambda m, x: m(x[0], scale=torch.ones(())),
    "no keyword": lambda m, x: m(x),
    "an unknown keyword": lambda m, x: m(x, scale=torch.ones(()), other=1),
    "another dtype": lambda m, x: m((x[0].double(), x[1]), scale=torch.ones(())),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_wrong_inputs_raise_what_the_programs_module_raises(client, program, inputs, case):
    # Its guards are not kept as separate code: the checks of its inputs find the same.
    remote, local = client.compile(program, [DCE]), program.module(check_guards=False)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever torch raises
        BAD_CALLS[case](program.module(), inputs)
    with pytest.raises(Exception) as expected:  # noqa: PT011 - whatever torch raises
        BAD_CALLS[case](local, inputs)
    with pytest.raises(type(expected.value)) as raised:
        BAD_CALLS[case](remote, inputs)
    assert str(raised.value).splitlines()[0] == str(expected.value).splitlines()[0]


def test_a_module_is_exported_with_its_example_inputs(client, model, inputs):
    remote = client.compile(model, [DCE], example_inputs=(inputs,))
    assert same(remote(inputs), model(inputs))
    by_name = client.compile(model, [DCE], example_inputs={"pair": inputs})
    assert same(by_name(pair=inputs), model(inputs))
    linear = nn.Linear(4, 2)
    assert torch.equal(client.compile(linear, [], inputs[0])(inputs[0]), linear(inputs[0]))


def test_a_module_without_example_inputs_says_what_it_needs(client, model):
    with pytest.raises(LazyfxError, match="example_inputs"):
        client.compile(model, [DCE])


def test_a_module_that_cannot_be_exported_says_why(client):
    class Untraceable(nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(LazyfxError, match=r"torch\.export cannot capture"):
        client.compile(Untraceable(), [DCE], (torch.ones(2),))


def test_an_argument_that_is_not_a_graph_is_refused(client):
    with pytest.raises(LazyfxError, match="cannot compile an object of type int"):
        client.compile(5)
    with pytest.raises(LazyfxError, match="pass_spec"):
        client.compile(graph_of(), [5])


def test_a_rebuilt_module_holds_the_callers_own_parameters(client):
    traced = symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)))
    rebuilt = client.compile(traced, [DCE]).graph_module()
    assert isinstance(rebuilt, GraphModule)
    own = dict(traced.named_parameters())
    assert dict(rebuilt.named_parameters()).keys() == own.keys()
    for name, parameter in rebuilt.named_parameters():
        assert parameter is own[name]
    x = torch.randn(2, 3)
    rebuilt(x).sum().backward()
    assert traced.get_parameter("0.weight").grad is not None


def test_an_exported_programs_parameters_are_its_own(client, program, inputs):
    rebuilt = client.compile(program, [DCE]).graph_module()
    assert rebuilt.linear.weight is program.state_dict["linear.weight"]
    rebuilt.linear.weight.data.zero_()
    assert not program.state_dict["linear.weight"].any()


def test_changing_a_rebuilt_module_changes_nothing_else(client):
    graph = graph_of(11.0)
    remote = client.compile(graph, [DCE])
    one, other = remote.graph_module(), remote.graph_module()
    assert one is not other
    last = next(n for n in reversed(one.graph.nodes) if n.op == "output")
    last.args = (next(iter(one.graph.nodes)),)
    one.recompile()
    x = torch.ones(2)
    assert torch.equal(one(x), x)
    assert torch.equal(remote(x), graph(x))
    assert torch.equal(other(x), graph(x))


def test_no_pickle_is_opened(client, program, inputs, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was opened")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    remote = client.compile(program, [DCE])
    assert remote.graph_module()
    assert "def forward" in remote.code
    assert remote(inputs, scale=torch.tensor(1.0))


_LOAD = """
import sys
assert not any("lazyfx" in name for name in sys.modules)
import torch
kind, path = sys.argv[1:]
if kind == "pickle":
    module = torch.load(path, weights_only=False)
else:
    module = torch.package.PackageImporter(path).load_pickle("module", "module.pkl")
assert isinstance(module, torch.fx.GraphModule)
assert not any("lazyfx" in name for name in sys.modules), "lazyfx was imported"
print(module(torch.ones(2, 3)).flatten().tolist())
"""


@pytest.mark.parametrize("kind", ["pickle", "package"])
@pytest.mark.parametrize("parameters", [True, False])
def test_saved_modules_load_with_torch_alone(client, tmp_path, kind, parameters):
    torch.manual_seed(0)
    traced = (
        symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU())) if parameters else graph_of(12.0)
    )
    remote = client.compile(traced, [DCE, CSE])
    path = tmp_path / "saved"
    saved = remote.save_pickle(path) if kind == "pickle" else remote.save_package(path)
    assert saved == path
    if kind == "pickle":
        script = _LOAD.replace("torch.load(path, weights_only=False)",
                               "__import__('pickle').load(open(path, 'rb'))")  # fmt: skip
    else:
        script = _LOAD
    ran = nursery.run("torch", ["-I", "-c", script, kind, str(path)], timeout=120)
    assert ran.returncode == 0, ran.stderr
    expected = traced(torch.ones(2, 3)).flatten().tolist()
    assert eval(ran.stdout) == pytest.approx(expected)


def test_a_picture_is_well_formed_and_shows_itself(client, tmp_path):
    def f(x):
        return torch.nn.functional.pad(x, (1, 1), value=float("inf")) < 3

    remote = client.compile(symbolic_trace(f), [DCE])
    picture = remote.picture()
    assert picture._repr_svg_() == picture
    root = ET.fromstring(picture)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = "".join(root.itertext())
    for node in remote.graph_module().graph.nodes:
        assert node.name in texts
    assert picture.save(tmp_path / "graph.svg").read_text() == picture
    assert remote.report.recompiles.performed == 1


def test_code_is_shown_with_the_arguments_that_the_caller_knows(client, program):
    code = client.compile(program, [DCE]).code
    assert "def forward(self, pair, scale" in code.replace("*, ", "")


def test_handles_outlive_other_touches_in_any_order(client):
    graph = graph_of(13.0)
    one = client.compile(graph, [DCE])
    x = torch.randn(2)
    assert torch.equal(one(x), graph(x))
    assert one.code == client.compile(graph, [DCE]).code
    assert repr(one).startswith("<RemoteModule ")


def test_training_goes_through_the_handle(client):
    traced = symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.Tanh()))
    remote = client.compile(traced, [DCE])
    x = torch.randn(2, 3, requires_grad=True)
    remote(x).sum().backward()
    assert x.grad is not None
    assert traced.get_parameter("0.weight").grad is not None


def test_a_pattern_is_replaced(client):
    spec = lazyfx.replace_pattern((lambda a, b: torch.add(a, b), lambda a, b: torch.mul(a, b)))
    remote = client.compile(symbolic_trace(lambda x, y: torch.add(x, y) - 1), [spec, DCE])
    x, y = torch.randn(3), torch.randn(3)
    assert torch.equal(remote(x, y), x * y - 1)
    assert remote.report.passes[0].changed


def test_values_are_sent_when_a_pass_reads_them(server):
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.arange(1000.0))

        def forward(self, x):
            return x + torch.sin(self.table) * 2

    sent: list[tuple[int, int]] = []
    x = torch.randn(1000)
    program = torch.export.export(Table(), (x,))
    local = program.module()
    with lazyfx.connect(server.address, on_upload=lambda *n: sent.append(n)) as client:
        remote = client.compile(program, ["constant_fold"])
        assert remote.report.nodes_after < remote.report.nodes_before
        assert torch.allclose(remote(x), local(x))
        assert sent
        assert sent[-1] == (4000, 4000)
        sent.clear()
        assert client.compile(program, ["constant_fold"]).cache.status == "hit"
        assert not sent
        program.state_dict["table"].add_(1)
        other = client.compile(program, ["constant_fold"])
        assert (other.cache.status, other.cache.reason) == ("miss", "NEW_VALUES")
        assert torch.allclose(other(x), program.module()(x))


def test_both_handles_have_the_same_methods_with_the_same_signatures():
    def signatures(handle):
        return {
            name: list(inspect.signature(value).parameters.values())
            for name, value in vars(handle).items()
            if callable(value) and not name.startswith("_")
        }

    blocking, asynchronous = signatures(lazyfx.RemoteModule), signatures(lazyfx.AsyncRemoteModule)
    # A property of the blocking handle, and what that handle itself calls.
    for name in ("code", "callable_module"):
        del asynchronous[name]
    assert blocking == asynchronous


def test_every_kind_that_needs_no_machine_is_made_and_saved_by_its_name(client, tmp_path):
    program = torch.export.export(nn.Linear(4, 4), (torch.ones(2, 4),))
    remote = client.compile(program, [DCE])
    for kind in ARTIFACT_KINDS.values():
        if kind.native:
            continue
        assert remote.artifact(kind.name)
        path = tmp_path / f"model{kind.suffix}"
        if kind.suffix:
            assert remote.save(path, kind.name) == path
            assert path.stat().st_size
        else:
            with pytest.raises(LazyfxError, match="cannot be saved as a file"):
                remote.save(path, kind.name)
    with pytest.raises(LazyfxError, match="'constant' is not a kind of artifact"):
        remote.artifact("constant")


@pytest.mark.parametrize("again", [pickle.dumps, copy.copy, copy.deepcopy])
def test_clients_and_handles_stay_in_their_process(server, again):
    """A DataLoader with "spawn" would pickle those of its dataset."""
    with lazyfx.connect(server.address) as client:
        module = client.compile(symbolic_trace(lambda x: x + 1))
        for mine, what in [(client, "lazyfx.connect in each process"), (module, "graph_module")]:
            with pytest.raises(TypeError, match=f"connection of its process; .*{what}"):
                again(mine)
