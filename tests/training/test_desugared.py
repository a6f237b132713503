"""Graphs that cannot be sent as dynamo captured them: AOTAutograd's graphs are sent instead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.testing._internal.two_tensor import TwoTensor

import lazyfx
from lazyfx.backend.planning import torch_aot
from lazyfx.backend.planning.parts import Part, computing_part
from lazyfx.errors import UnsupportedGraphError

Compile = Callable[..., Callable[..., Any]]


def two_tensors(compile_it: Compile) -> list[torch.Tensor]:
    weight = TwoTensor(torch.randn(3, 3), torch.randn(3, 3)).requires_grad_()
    y = compile_it(lambda w, x: (w @ x).tanh())(weight, torch.randn(3, 3))
    for _ in range(2):
        torch.autograd.backward(y, torch.ones_like(y), retain_graph=True)
    return [y.a, y.b, weight.grad.a, weight.grad.b]


def one_input_twice(compile_it: Compile) -> list[torch.Tensor]:
    def grown(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.add_(1)
        return a * b

    x = torch.randn(5)
    return [compile_it(grown)(x, x), x]


def overlapping_inputs(compile_it: Compile) -> list[torch.Tensor]:
    """Inputs that overlap, at two places."""

    def doubled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a.mul_(2)
        return nn.functional.dropout(a.sin() + b, 0.5)

    call = compile_it(doubled)
    found = []
    for pair in ((0, 2), (3, 5)):
        base = torch.randn(14, requires_grad=True)
        memory = base * 1.0
        torch.manual_seed(1)
        y = call(*(memory[start : start + 6] for start in pair))
        y.square().sum().backward()
        found += [y, memory, base.grad]
    return found


def jagged(compile_it: Compile) -> list[torch.Tensor]:
    layer = nn.Linear(3, 3)
    call = compile_it(lambda x: torch.relu(layer(x)) * 2)
    found = []
    for lengths in ((2, 4), (3, 1, 5)):
        rows = [torch.randn(length, 3) for length in lengths]
        x = torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)
        y = call(x)
        y.values().sum().backward()
        found += [y.values(), y.offsets(), x.grad.values(), layer.weight.grad]
    return found


@torch._dynamo.allow_in_graph
def own_function(x: torch.Tensor) -> torch.Tensor:
    return x.sin() * 3


def own_functions(compile_it: Compile) -> list[torch.Tensor]:
    x = torch.randn(4, requires_grad=True)
    y = compile_it(lambda x: own_function(x).exp() + 1)(x)
    y.sum().backward(retain_graph=True)
    y.sum().backward()
    return [y, x.grad]


def compiled_backward(compile_it: Compile) -> list[torch.Tensor]:
    """Compiled autograd, with a hook that changes a gradient."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
    layers[0].weight.register_hook(lambda gradient: gradient * 2)

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = layers(x).square().sum()
        loss.backward()
        return loss

    with torch._dynamo.config.patch(compiled_autograd=True):
        loss = compile_it(step)(torch.randn(3, 4))
    return [loss, *(p.grad for p in layers.parameters())]


def hooked(compile_it: Compile, inner: Any, hooks: Any) -> list[torch.Tensor]:
    """Saved-tensors hooks that change what is saved, so that gradients show whether they ran."""
    x = torch.linspace(0.1, 1, 4).requires_grad_()
    call = compile_it(lambda x: (inner(x).exp() * x.cos()).tanh())
    with torch.autograd.graph.saved_tensors_hooks(*hooks) if hooks else nullcontext():
        y = call(x)
    y.sum().backward()
    return [y, x.grad]


CALLED = (lambda x: x * 0.5, lambda x: x * 1.0)
"""Hooks that torch calls when the compiled code runs."""
TRACED = tuple(torch.fx.symbolic_trace(hook) for hook in CALLED)
"""Hooks that AOTAutograd makes part of the graphs."""


CASES = (
    *(two_tensors, one_input_twice, overlapping_inputs, jagged, own_functions, compiled_backward),
)


def results_of(case: Callable[[Compile], list[torch.Tensor]], **given: Any) -> list[torch.Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    compile_it = (lambda f: torch.compile(f, **given)) if given else (lambda f: f)
    return [each.detach().clone() for each in case(compile_it)]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_results_and_gradients_are_those_of_eager_torch(server: Any, case: Any) -> None:
    options = {"address": server.address, "compile": "eager", "on_error": "raise"}
    found = results_of(case, backend="lazyfx", options=options)
    assert lazyfx.backend_report().remote == len(lazyfx.backend_report().graphs) > 0
    torch.testing.assert_close(found, results_of(case), rtol=0, atol=0)


@pytest.mark.parametrize("hooks", [TRACED, CALLED])
def test_saved_tensors_hooks_run_as_in_torch(server: Any, hooks: Any) -> None:
    options = {"address": server.address, "compile": "eager", "on_error": "raise"}
    case = partial(hooked, inner=own_function, hooks=hooks)
    found = results_of(case, backend="lazyfx", options=options)
    assert lazyfx.backend_report().remote == 1
    torch.testing.assert_close(found, results_of(case, backend="aot_eager"), rtol=0, atol=0)
    without = results_of(partial(case, hooks=None))
    assert not torch.allclose(found[1], without[1])


def test_hooks_that_the_server_would_not_know_are_the_reason(server: Any) -> None:
    options = {"address": server.address, "wait": False, "on_error": "eager"}
    case = partial(hooked, inner=torch.sin, hooks=TRACED)
    with pytest.warns(lazyfx.FallbackWarning):
        found = results_of(case, backend="lazyfx", options=options)
    assert "saved-tensors hooks" in lazyfx.backend_report().graphs[0].reason
    torch.testing.assert_close(found, results_of(case), rtol=0, atol=0)


# A tensor parallel job (test_ranks.py) is compiled natively in every run of CI.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "case",
    [
        *(two_tensors, overlapping_inputs, jagged),
        *(partial(hooked, inner=torch.sin, hooks=hooks) for hooks in (TRACED, CALLED)),
    ],
)
def test_native_code_is_that_of_inductor_here(native_server: Any, case: Any) -> None:
    options = {"address": native_server.address, "on_error": "raise"}
    found = results_of(case, backend="lazyfx", options=options)
    assert lazyfx.backend_report().remote == len(lazyfx.backend_report().graphs) > 0
    torch.testing.assert_close(found, results_of(case, backend="inductor"), rtol=0, atol=0)


def test_what_cannot_be_sent_either_way_has_both_reasons(server: Any) -> None:
    def quantized(x: torch.Tensor) -> torch.Tensor:
        return torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize()

    options = {"address": server.address, "compile": "eager"}
    with pytest.warns(lazyfx.FallbackWarning):
        found = torch.compile(quantized, backend="lazyfx", options=options)(torch.ones(2))
    torch.testing.assert_close(found, quantized(torch.ones(2)))
    (graph,) = lazyfx.backend_report().graphs
    assert graph.outcome == "eager"
    assert graph.reason.count("the format does not support the dtype torch.qint8") == 2
    assert "after AOTAutograd" in graph.reason


class Mesh:
    """An object of this process."""


def graph_with_a_mesh(*, used: bool) -> GraphModule:
    graph = Graph()
    mesh, x = graph.placeholder("mesh"), graph.placeholder("x")
    mesh.meta["val"], x.meta["val"] = Mesh(), torch.empty(2, 3)
    y = graph.call_function(torch.ops.aten.mul.Tensor, (x, mesh if used else 2))
    y.meta["val"] = torch.empty(2, 3)
    graph.output((y, mesh, None, x, y, 7))
    return GraphModule(nn.Module(), graph)


def test_what_is_no_tensor_is_handed_on() -> None:
    computing = computing_part(graph_with_a_mesh(used=False))
    part = Part(computing)
    part.code = computing.module
    mesh, x = Mesh(), torch.randn(2, 3)
    inputs = [mesh, x]
    found = part(inputs)
    assert inputs == []
    assert found[1] is mesh
    assert found[3] is x
    assert (found[2], found[5]) == (None, 7)
    assert found[0] is found[4]
    torch.testing.assert_close(found[0], x * 2)


def test_an_object_that_the_graph_needs_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedGraphError, match=r"node 'mesh'.*a Mesh.*'mul_tensor'"):
        computing_part(graph_with_a_mesh(used=True))


def test_results_have_the_strides_that_the_backward_was_traced_for() -> None:
    part = Part(computing_part(graph_with_a_mesh(used=False)))
    part.code = lambda x: ((x * 2).t().contiguous().t(),)
    x = torch.randn(2, 3)
    found = part([Mesh(), x])
    assert found[0].stride() == (3, 1)
    torch.testing.assert_close(found[0], x * 2)


def part_with(value: torch.Tensor, code: Any) -> Part:
    """A part that returns its input, traced with the strides of a value."""
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(1, 4)
    y = graph.call_function(torch.ops.aten.alias.default, (x,))
    y.meta["val"] = value
    graph.output((y,))
    part = Part(computing_part(GraphModule(nn.Module(), graph)))
    part.code = code
    return part


def test_results_that_were_expanded_are_expanded() -> None:
    part = part_with(
        torch.empty(1, 4).expand(3, 4),
        lambda x: (x.expand(3, 4).contiguous().t().contiguous().t(),),
    )
    x = torch.randn(1, 4)
    (found,) = part([x])
    assert found.stride() == (0, 1)
    torch.testing.assert_close(found, x.expand(3, 4))


@pytest.mark.parametrize("sizes", [(1, 4), (0, 4)])
def test_strides_that_move_nothing_need_no_copy(sizes: tuple[int, int]) -> None:
    x = torch.randn(sizes)
    part = part_with(torch.empty_strided(sizes, (1, 1)), lambda x: (x.view(sizes),))
    (found,) = part([x])
    assert found.data_ptr() == x.data_ptr()
    assert found._base is x


def test_other_threads_draw_as_ever_while_a_graph_is_traced() -> None:
    from torch._inductor.fx_passes import joint_graph
    from torch._inductor.virtualized import V

    def drawn() -> int:
        graph = Graph()
        graph.output(graph.call_function(torch.ops.aten.rand.default, ((2,),)))
        with V.set_fake_mode(FakeTensorMode()):
            return joint_graph.replace_random_passes(GraphModule(nn.Module(), graph))

    found: dict[str, int] = {}
    original = joint_graph.replace_random_passes
    with torch_aot._keeping_random_operators():
        found["here"] = drawn()
        thread = threading.Thread(target=lambda: found.update(there=drawn()))
        thread.start()
        thread.join()
    assert found["here"] == 0
    assert found["there"] > 0
    assert joint_graph.replace_random_passes is original
