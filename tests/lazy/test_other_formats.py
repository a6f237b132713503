"""ExportedPrograms and TorchScript compute what their graph computes, or are refused."""

from __future__ import annotations

import contextlib
import copy
import io
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from captured_graphs import exported as of_export
from captured_graphs import graphs, of_dynamo
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from conformance.comparing import unlike
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.shared.formats.exported_program import export_module
from lazyfx.shared.formats.torchscript import eager_copy, script_module
from lazyfx_server.jobs.artifact_kinds import render_exported_program
from lazyfx_server.lazy.lazy_module import lazy_class
from lazyfx_server.lazy.recompile_ledger import RecompileLedger


def through_the_wire(module: GraphModule) -> GraphModule:
    encoded = wire.encode(module)

    def bind(graph: int, attribute: int, _row: Any) -> torch.Tensor:
        return encoded.attributes[graph][attribute]  # type: ignore[return-value]

    def convention(root: torch.fx.Graph) -> None:
        root.set_codegen(copy.copy(module.graph._codegen))

    return wire.decode(encoded.body, encoded.presentation, bind=bind, on_root=convention)


def exported(module: GraphModule) -> Callable[..., Any]:
    return torch.export.load(io.BytesIO(export_module(module))).module()


def scripted(module: GraphModule) -> Callable[..., Any]:
    return torch.jit.load(io.BytesIO(script_module(eager_copy(module))))  # type: ignore[no-any-return]


# What cannot be expressed in TorchScript.
NO_SCRIPT = {
    "autocast_dynamo", "autocast_export", "branch_dynamo", "branch_export", "item", "loop",
    "no_grad_dynamo", "no_grad_export", "scan", "vmap",
}  # fmt: skip


@pytest.mark.parametrize(("save", "refused"), [(exported, set()), (scripted, NO_SCRIPT)])
def test_what_is_loaded_computes_what_was_saved(
    save: Callable[..., Any], refused: set[str]
) -> None:
    different, missing = {}, set()
    for name, (module, args) in graphs().items():
        if not any("val" in n.meta or "example_value" in n.meta for n in module.graph.nodes):
            module = copy.deepcopy(module)
            FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*args)
        sent = through_the_wire(module)
        here = copy.deepcopy(sent)
        try:
            loaded = save(sent)
        except UnsupportedGraphError:
            missing.add(name)
            continue
        for seed in range(2):
            results = []
            for called in (loaded, here):
                given = copy.deepcopy(args)
                torch.manual_seed(seed)
                results.append((pytree.tree_leaves(called(*given)), given))
            if reason := unlike(*results):
                different[name, seed] = reason
    assert (different, missing) == ({}, refused)


IN_PLACE = ("iadd", "iand", "ifloordiv", "ilshift", "imod", "imul", "ior", "ipow", "irshift",
            "isub", "itruediv", "ixor")  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("scalar", [False, True])
def test_operators_that_write_do_so_in_torchscript(name: str, scalar: bool) -> None:
    graph = torch.fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    graph.output(graph.call_function(getattr(operator, name), (a, 2 if scalar else b)))
    module = GraphModule(nn.Module(), graph)
    one = torch.tensor([5, 6, 7], dtype=torch.float32 if name == "itruediv" else torch.int64)
    given, other = [(one.clone(), torch.tensor([3, 1, 2])) for _ in range(2)]
    expected = module(*given)
    found = scripted(module)(*other)
    assert unlike((found, other), (expected, given)) == ""
    assert not torch.equal(other[0], one)


class WritesLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.zeros(3))
        self.register_buffer("b", torch.zeros(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._foreach_add_([self.a, self.b], [x, x])
        return self.a + self.b


@pytest.mark.parametrize("capture", [torch.fx.symbolic_trace, "export"])
def test_writes_to_lists_are_refused_by_torchscript(capture: Any) -> None:
    if capture == "export":
        program = torch.export.export(WritesLists(), (torch.ones(3),))
        module = program.module(check_guards=False)
    else:
        module = capture(WritesLists())
    with pytest.raises(UnsupportedGraphError, match="drops writes to a list of tensors"):
        scripted(module)


class ReadsStatistics(nn.Module):
    """Returns a running mean after its update, or ignores the result of the normalization."""

    def __init__(self, ignored: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.ignored = ignored

    def forward(self, x: torch.Tensor) -> Any:
        y = self.norm(x)
        return x if self.ignored else (y, self.norm.running_mean.clone())


@pytest.mark.parametrize("ignored", [False, True])
def test_running_statistics_that_are_read_are_current_in_torchscript(ignored: bool) -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [3.0, 6.0, 9.0]])
    program = torch.export.export(ReadsStatistics(ignored), (x,))
    with pytest.raises(UnsupportedGraphError, match=r"running statistics|is unused"):
        scripted(program.module(check_guards=False))
    # In the form that functionalizing gives, the operator can be replaced.
    node = next(n for n in program.graph.nodes if "batch_norm" in n.name)
    mean, variance = node.args[3:5]
    with program.graph.inserting_before(node):
        norm = program.graph.call_function(
            torch.ops.aten.native_batch_norm.default,
            (*node.args[:3], mean, variance, True, 0.1, 1e-5),
        )
        result = program.graph.call_function(operator.getitem, (norm, 0))
    node.replace_all_uses_with(result)
    program.graph.erase_node(node)
    loaded = scripted(program.module(check_guards=False))
    here = ReadsStatistics(ignored)
    for _ in range(3):
        assert unlike(pytree.tree_leaves(loaded(x)), pytree.tree_leaves(here(x))) == ""
    state = dict(loaded.named_buffers())
    assert unlike(state["norm.running_var"], here.norm.running_var) == ""


def test_a_batch_norm_that_trains_is_scripted() -> None:
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).train())
    x = torch.randn(4, 3)
    here, loaded = copy.deepcopy(module), scripted(module)
    for _ in range(2):
        assert unlike([loaded(x)], [here(x)]) == ""


def test_a_spectral_norm_is_not_computed_to_be_refused() -> None:
    norm = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    module = torch.fx.symbolic_trace(nn.Sequential(norm))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(UnsupportedGraphError, match="a module with parametrizations"):
        scripted(module)
    assert unlike(dict(module.state_dict()), dict(before)) == ""


def test_saving_a_program_writes_to_no_constant() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.count = torch.ones(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count.add_(1)
            return x + self.count

    module = torch.fx.symbolic_trace(Counts())
    FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(torch.zeros(2))
    module.count.fill_(1)
    expected = calls(copy.deepcopy(module), (torch.zeros(2),))
    loaded = exported(module)
    assert module.count.tolist() == [1, 1]
    assert unlike(calls(loaded, (torch.zeros(2),)), expected) == ""


def calls(module: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    """Two calls: what is returned, and what is left in the inputs."""
    results = []
    for seed in range(2):
        given = copy.deepcopy(args)
        torch.manual_seed(seed)
        results.append((pytree.tree_leaves(module(*given)), given))
    return results


def through_data(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x.data.copy_(y)
    return x * 2


def drawn_in_place(x: torch.Tensor) -> torch.Tensor:
    return x + torch.empty(3).uniform_()


class Shared(nn.Module):
    """Writes through a constant, reads a buffer of the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.arange(6.0)
        self.register_buffer("b", self.a[1:4])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.a.add_(1)
        return self.b + x


@pytest.mark.parametrize("name", ["data", "uniform", "shared"])
def test_a_program_is_right_or_refused(name: str) -> None:
    three = torch.ones(3)
    module, args = {
        "data": lambda: (of_dynamo(through_data, three, three * 7), (three, three * 7)),
        "uniform": lambda: (of_export(drawn_in_place, three), (three,)),
        "shared": lambda: (of_export(Shared(), three), (three,)),
    }[name]()
    sent = through_the_wire(module)
    expected = calls(copy.deepcopy(sent), args)
    try:
        loaded = exported(sent)
    except UnsupportedGraphError as error:
        assert "save_pickle" in str(error) or "pickle" in str(error)  # noqa: PT017
    else:
        assert unlike(calls(loaded, args), expected) == ""


def test_a_program_casts_where_its_graph_does() -> None:
    def cast(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ x @ x).float().softmax(0)

    x = torch.randn(3, 3)
    sent = through_the_wire(of_dynamo(cast, x))
    expected = calls(copy.deepcopy(sent), (x,))
    assert unlike(calls(exported(sent), (x,)), expected) == ""


def test_a_server_writes_a_program_that_casts_under_the_names_of_the_inputs() -> None:
    """Modules of a server are lazy: running their grad-mode switches must not leave stale code."""
    graph = Graph()
    left, right = graph.placeholder("left"), graph.placeholder("right")
    entered = graph.call_function(
        torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, True)
    )
    product = graph.call_method("float", (graph.call_function(torch.matmul, (left, right)),))
    graph.call_function(torch.amp.autocast_mode._exit_autocast, (entered,))
    graph.output(graph.call_function(torch.softmax, (product, 0)))
    plain = through_the_wire(GraphModule({}, graph))
    x, y = torch.randn(3, 3), torch.randn(3, 3)
    mode = FakeTensorMode()
    for node, value in zip(plain.graph.find_nodes(op="placeholder"), (x, y), strict=True):
        node.meta["val"] = mode.from_tensor(value)
    expected = calls(copy.deepcopy(plain), (x, y))
    ledger = RecompileLedger()
    module = lazy_class(ledger)(plain, copy.deepcopy(plain.graph))
    program = torch.export.load(io.BytesIO(render_exported_program(module, ledger)))
    assert unlike(calls(program.module(), (x, y)), expected) == ""
    assert {event.trigger for event in ledger.events} == {"exported_program"}
    assert [spec.arg.name for spec in program.graph_signature.input_specs] == [
        node.name for node in plain.graph.find_nodes(op="placeholder")
    ]


def test_an_export_that_fails_leaves_no_mode_behind() -> None:
    """vmap, forward-mode derivatives: torch leaves levels of both behind, for the whole process."""
    module = of_dynamo(lambda x: torch.func.hessian(lambda a: (a**3).sum())(x), torch.ones(3))
    with contextlib.suppress(UnsupportedGraphError):
        exported(through_the_wire(module))
    torch.func.jvp(torch.sin, (torch.ones(2),), (torch.ones(2),))
    assert torch.randn(2).shape == (2,)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "model",
    [nn.Embedding(5, 3, max_norm=0.5), nn.EmbeddingBag(5, 3, max_norm=0.5, mode="sum")],
)
def test_torchscript_shortens_rows_or_is_refused(model: nn.Module) -> None:
    index = torch.tensor([[0, 1], [4, 0]])
    for module in (torch.fx.symbolic_trace(nn.Sequential(model)), of_dynamo(model, index)):
        with pytest.raises(UnsupportedGraphError, match="max_norm"):
            scripted(module)


def test_torchscript_takes_numbers_where_the_graph_does() -> None:
    def rows(x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, x.shape[0]) * x.shape[0]

    x = torch.randn(4, 6)
    module = through_the_wire(of_dynamo(rows, x, dynamic=True))
    args = tuple(
        x if isinstance(v, FakeTensor) else int(v)
        for v in (n.meta.get("example_value") or wire.materialize(n, FakeTensorMode())
                  for n in module.graph.find_nodes(op="placeholder"))
    )  # fmt: skip
    assert unlike(calls(scripted(copy.deepcopy(module)), args), calls(module, args)) == ""


def test_operators_that_an_import_registers_are_refused_by_what_does_not_import() -> None:
    import torch.ao.quantization.fx._decomposed

    def quantized(x: torch.Tensor) -> torch.Tensor:
        operators = torch.ops.quantized_decomposed
        return operators.quantize_per_tensor(x, 0.1, 0, 0, 255, torch.uint8)

    for save in (exported, scripted):
        with pytest.raises(UnsupportedGraphError, match=r"is imported(\n|.)*save_pickle"):
            save(of_export(quantized, torch.ones(3)))
