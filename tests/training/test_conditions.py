"""What an artifact depends on: machines, states, settings, sizes. No server is needed."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from lazyfx.backend.agreement import _first_difference, _lines
from lazyfx.backend.dynamo_graphs import flatten
from lazyfx.backend.options import BackendOptions
from lazyfx.backend.remote import make_request
from lazyfx.errors import ArtifactError, IncompatibleError, LazyfxError, UnsupportedGraphError
from lazyfx.shared.native import shape_guards, torch_settings, tracing_state
from lazyfx.shared.native.machine import accelerator, describe_host, mismatch
from lazyfx.shared.native.native_request import conditions_digest, native_request
from lazyfx.v1 import compiler_pb2 as pb

CPU = {torch.device("cpu")}


def host(**changes: object) -> pb.NativeTarget:
    target = describe_host(vector_isa="avx2", accelerator="")
    del target.cpu_flags[:]
    target.cpu_flags.extend(["avx2", "fma"])
    for name, value in changes.items():
        if name == "cpu_flags":
            del target.cpu_flags[:]
            target.cpu_flags.extend(value)  # type: ignore[arg-type]
        else:
            setattr(target, name, value)
    return target


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": "2.99"}, "torch is 2.99"),
        ({"torch_key": b"x"}, "torch's sources"),
        ({"python": "cpython-399"}, "Python's ABI"),
        ({"vector_isa": ""}, "vector instruction set is none on the server"),
        ({"cpu_flags": ["avx2", "avx512f", "fma"]}, "lacks: avx512f"),
    ],
)
def test_what_is_made_on_another_machine_is_refused(changes: dict[str, object], words: str) -> None:
    assert words in mismatch(host(**changes), host())


def test_a_cpu_that_can_do_more_runs_it() -> None:
    assert mismatch(host(), host()) == ""
    assert mismatch(host(), host(cpu_flags=["avx2", "fma", "sha_ni"])) == ""


def test_a_gpu_is_wanted_only_by_graphs_that_use_one() -> None:
    gpu = "cuda 13.0, H100 sm_90, triton 3.6"
    assert mismatch(host(accelerator=gpu), host()) == ""
    assert mismatch(host(accelerator=gpu), host(accelerator=gpu)) == ""
    assert "CPUs only" in mismatch(host(), host(accelerator=gpu))


def test_the_description_of_a_gpu_has_its_kind_and_not_its_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_name", lambda index: "L40" if index == 2 else "H100"
    )
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda index: (8, 9) if index == 2 else (9, 0)
    )
    words = [accelerator({torch.device("cuda", i), torch.device("cpu")}) for i in range(3)]
    assert words[0] == words[1]
    assert "H100 sm_90" in words[0]
    assert "L40 sm_89" in words[2]
    assert "H100" in mismatch(host(accelerator=words[2]), host(accelerator=words[0]))


def test_a_graph_on_another_gpu_than_the_first_is_not_asked_for() -> None:
    graph = torch.fx.symbolic_trace(lambda x: (torch.relu(x),))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = FakeTensor(mode, torch.empty(4, device="meta"), torch.device("cuda", 1))
    with pytest.raises(IncompatibleError, match="CUDA_VISIBLE_DEVICES"):
        make_request(graph, [fake], BackendOptions())


def test_states_split_artifacts_and_the_machine_does_not() -> None:
    plain = conditions_digest(native_request(CPU, None, {}))
    assert conditions_digest(native_request(CPU, None, {})) == plain
    with torch.no_grad():
        assert conditions_digest(native_request(CPU, None, {})) != plain
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conditions_digest(native_request(CPU, None, {})) != plain
    with torch.inference_mode():
        assert conditions_digest(native_request(CPU, None, {})) != plain
    assert conditions_digest(native_request(CPU, None, {"max_autotune": True})) != plain
    torch.use_deterministic_algorithms(True)
    try:
        assert conditions_digest(native_request(CPU, None, {})) != plain
    finally:
        torch.use_deterministic_algorithms(False)
    moved = native_request(CPU, None, {})
    moved.target.vector_isa = "other"
    assert conditions_digest(moved) == plain


def test_states_are_put_in_place_and_taken_back() -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        there = tracing_state.read_states({"cpu"})
    assert torch.is_grad_enabled()
    with ExitStack() as stack:
        tracing_state.enter_states(there, stack)
        assert tracing_state.read_states({"cpu"}) == there
        torch.set_autocast_enabled("cpu", False)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "value"), [("telepathy", 1), ("threads", 0), ("grad", 3)])
def test_an_impossible_state_is_refused_by_name(name: str, value: int) -> None:
    state = pb.PassOption(name=name, value=pb.OptionValue(integer=value))
    with ExitStack() as stack, pytest.raises(LazyfxError, match=name):
        tracing_state.enter_states([state], stack)


@pytest.mark.parametrize(
    "name", ["cpp.cxx", "post_grad_custom_pre_pass", "aot_inductor.output_path"]
)
def test_settings_that_run_programs_do_not_travel(name: str) -> None:
    with pytest.raises(LazyfxError, match=name.replace(".", r"\.")):
        torch_settings.requested(None, {name: "evil"})
    smuggled = pb.PassOption(name=name, value=pb.OptionValue(text="evil"))
    with pytest.raises(LazyfxError, match=name.replace(".", r"\.")):
        torch_settings.from_proto([smuggled])


def test_cuda_graphs_do_not_travel_and_say_nothing_about_cpus() -> None:
    with pytest.raises(LazyfxError, match="cudagraphs"):
        torch_settings.requested("reduce-overhead", {}, {"cpu", "cuda"})
    assert "triton.cudagraphs" not in torch_settings.requested("reduce-overhead", {}, {"cpu"})


def test_a_setting_patched_in_the_process_travels() -> None:
    with torch._inductor.config.patch(max_autotune_pointwise=True):
        assert torch_settings.requested(None, {})["max_autotune_pointwise"] is True


def dynamic_input(size: int) -> tuple[torch.Tensor, ShapeEnv]:
    env = ShapeEnv()
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    mode = FakeTensorMode(shape_env=env)
    return mode.from_tensor(torch.empty(size, 8), symbolic_context=context), env


def test_guards_that_the_server_found_are_enforced_by_the_client() -> None:
    theirs, env = dynamic_input(6)
    symbols = shape_guards.input_symbols([theirs])
    known = len(env.guards)
    assert env.evaluate_expr(sympy.Le(symbols[0], 4096))
    # Inductor asks with sympy's own modulo, torch with another.
    assert env.evaluate_expr(sympy.Eq(sympy.Mod(symbols[0], 3), 0))
    message = pb.ShapeGuards.FromString(
        shape_guards.guards_of(env, symbols, known).SerializeToString()
    )
    ours, our_env = dynamic_input(9)
    conditions = shape_guards.read_guards(message, shape_guards.input_symbols([ours]))
    shape_guards.enforce(conditions, our_env)
    assert any("4096" in str(guard.expr) for guard in our_env.guards)

    asked = shape_guards.Conditions(conditions, [ours])
    assert asked.hold([torch.empty(9, 8)])
    assert not asked.hold([torch.empty(5001, 8)])
    assert not asked.hold([torch.empty(10, 8)])

    large, large_env = dynamic_input(5001)
    too_large = shape_guards.read_guards(message, shape_guards.input_symbols([large]))
    with pytest.raises(ArtifactError, match="other sizes"):
        shape_guards.enforce(too_large, large_env)


def test_guards_about_more_sizes_than_the_graph_has_are_refused() -> None:
    theirs, env = dynamic_input(6)
    symbols = shape_guards.input_symbols([theirs])
    assert env.evaluate_expr(sympy.Le(symbols[0], 4096))
    message = shape_guards.guards_of(env, symbols, 0)
    with pytest.raises(ArtifactError, match="more sizes"):
        shape_guards.read_guards(message, [])
    message.conditions.append(99)
    with pytest.raises(ArtifactError, match="malformed"):
        shape_guards.read_guards(message, symbols)


def test_inputs_may_share_memory_unless_it_is_written() -> None:
    base = torch.randn(8)
    inputs = [base[:4], base[4:]]
    flatten(torch.fx.symbolic_trace(lambda x, y: (x + y,)), inputs)
    flatten(torch.fx.symbolic_trace(lambda x, y: (torch.empty_like(x).copy_(y),)), inputs)
    for writing in (
        lambda x, y: (x.view(2, 2).add_(1), y),
        lambda x, y: (torch.add(x, 1, out=y),),
        lambda x, y: (
            torch.nn.functional.batch_norm(torch.ones(3, 4), x, y, training=True, momentum=0.5),
        ),
    ):
        graph = torch.fx.symbolic_trace(writing)
        with pytest.raises(UnsupportedGraphError, match="share memory"):
            flatten(graph, inputs)


def test_tensors_of_the_graph_become_inputs() -> None:
    class Holder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(3))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (x * self.weight + self.weight,)

    holder = Holder()
    x = torch.randn(3)
    flat = flatten(torch.fx.symbolic_trace(holder), [x])
    assert [tensor is holder.weight for tensor in flat.lifted] == [True]
    torch.testing.assert_close(flat.module(x, *flat.lifted), holder(x))


def test_the_first_node_that_differs_is_named() -> None:
    one = _lines(torch.fx.symbolic_trace(lambda x: torch.relu(x) + 1))
    other = _lines(torch.fx.symbolic_trace(lambda x: torch.relu(x) + 2))
    assert "'add'" in _first_difference([one, other])
    assert "no node" in _first_difference([one, one[:-1]])
