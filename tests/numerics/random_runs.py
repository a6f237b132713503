"""Compares what a captured module does, called twice, with what its handle and its files do."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from numerics.random_modules import Program, leaves, random_program
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Proxy
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

import lazyfx
from lazyfx.shared.pass_spelling import parse
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import Pipeline, Registry

# Passes that keep every bit.
EXACT = (
    "common_subexpression_elimination", "constant_fold", "dead_code_elimination", "functionalize",
    "no_op_elimination", "normalize_arguments", "partition_by_support", "reinplace", "sink_views",
    "remove_dropout", "shape_propagation", "split_module",
)  # fmt: skip
CLOSE = ("decompose", "merge_matmul", "fuse_linear_bn", "fuse_attention", "batch_fusion",
         "inductor_joint_graph", "inductor_post_grad", "inductor_pre_grad", "remove_duplicate_casts",
         "fuse_conv_bn")  # fmt: skip
COARSE = ("convert_dtype", "quantize_weights")
OPTIONS = {
    "partition_by_support": '{supported=["add","mul","linear","view"]}',
    "quantize_weights": "{min_elements=1}",
    "split_module": "{max_nodes=2}",
    "batch_fusion": '{at_least=2,kinds=["linear","relu","add","mul"]}',
}


HOW = ("apart", "same", "shifted", "strided", "state")
Capture = Callable[[Program], tuple[Any, Callable[..., Any]]]
_REGISTRY = Registry()


class Tracer(torch.fx.Tracer):
    """Traces accesses to buffers too."""

    proxy_buffer_attributes = True


def symbolic(program: Program) -> tuple[Any, Callable[..., Any]]:
    """A graph of torch.fx, with the shapes of its values."""
    model = program.module()
    module = GraphModule(model, Tracer().trace(model))
    if any(isinstance(value, Proxy) for value in vars(module).values()):
        raise ValueError("an attribute was set while it was traced, which torch.fx does not undo")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        inputs = {n: mode.from_tensor(t, static_shapes=True) for n, t in program.inputs().items()}
        for name in "ab" if program.grads else "":
            inputs[name].requires_grad_()
        given = [inputs.get(n.target, 2.0) for n in module.graph.find_nodes(op="placeholder")]
        with torch.no_grad():
            FakeTensorProp(module, mode).propagate_dont_convert_inputs(*given)
        for node in module.graph.find_nodes(op="placeholder"):
            node.meta["val"] = inputs.get(node.target, 2.0)  # which says what requires grad
    return module, module


def traced(program: Program) -> tuple[Any, Callable[..., Any]]:
    """A graph of aten operators, with its writes."""
    model, inputs = program.module(), program.inputs()
    with torch.set_grad_enabled(program.grads):
        module = make_fx(lambda a, b, d: model(a, b, d))(*inputs.values())
    for node in module.graph.find_nodes(op="placeholder")[:2] if program.grads else ():
        node.meta["val"].requires_grad_()
    return module, module


def exported(program: Program) -> tuple[Any, Callable[..., Any]]:
    """A graph of torch.export."""
    inputs = program.inputs()
    found = torch.export.export(
        program.module(), (inputs["a"], inputs["b"], inputs["d"]), strict=False
    )
    return found, found.module()


@dataclass
class Run:
    """What calls did: names of what is compared, and tensors."""

    found: dict[str, Tensor]


def run_twice(
    program: Program, call: Callable[..., Any], state: Callable[[], dict[str, Tensor]], how: str
) -> dict[str, Tensor]:
    """Calls a module twice and writes to its results, as its caller may.

    Returns:
        Results, gradients, inputs and attributes after each call.
    """
    found: dict[str, Tensor] = {}
    torch.manual_seed(7)
    for number in range(2):
        inputs = program.inputs(how if how != "state" else "apart")
        if how == "state":
            inputs["b"] = state()["state"]
        leaf: dict[str, Tensor] = {}
        if program.grads and how == "apart":
            leaf = {n: inputs[n].clone().requires_grad_() for n in "ab"}
            inputs |= {n: t * 1 for n, t in leaf.items()}
        with torch.set_grad_enabled(program.grads):
            results = leaves(call(inputs["a"], inputs["b"], inputs["d"]))
        for i, result in enumerate(results):
            found[f"call {number} result {i}"] = result.detach().clone()
        if program.grads:
            found |= {f"call {number} {n}": t for n, t in _gradients(results, leaf, state())}
        for i, result in enumerate(results):
            with torch.no_grad():
                try:
                    result.detach().add_(i + 1)
                except RuntimeError:  # an expanded result
                    continue
        found |= {f"call {number} input {n}": t.detach().clone() for n, t in inputs.items()}
        found |= {f"call {number} state {n}": t.detach().clone() for n, t in state().items()}
    return found


def _gradients(
    results: list[Tensor], leaf: dict[str, Tensor], state: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    # A tensor that was written is no leaf: what it stands for in the graph may differ.
    sources = {**leaf, **{n: t for n, t in state.items() if t.requires_grad and t.is_leaf}}
    wanted = [r.abs().sum().double() for r in results if r.requires_grad and r.numel()]
    if not wanted or not sources:
        return
    total = torch.stack(wanted).sum()
    found = torch.autograd.grad(total, list(sources.values()), allow_unused=True)
    for name, gradient in zip(sources, found, strict=True):
        if gradient is not None:
            yield f"gradient {name}", gradient


def state_of(captured: Any) -> dict[str, Tensor]:
    """The tensors of what was captured."""
    if isinstance(captured, torch.export.ExportedProgram):
        tensors = {**captured.state_dict, **captured.constants}
        return {n: t for n, t in tensors.items() if isinstance(t, Tensor)}
    module: nn.Module = captured
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    own |= {n: t for n, t in vars(module).items() if isinstance(t, Tensor)}
    # Parts of a split graph hold what they read.
    return {re.sub(r"^(submod_\d+\.)+", "", name): tensor for name, tensor in own.items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> str | None:
    """What differs first, if anything."""
    for name, expected in one.items():
        found = other.get(name)
        if found is None:
            if " state " in name:
                continue  # not read
            return f"{name} is missing"
        if expected.shape != found.shape or expected.dtype != found.dtype:
            return f"{name} is {found.dtype} {tuple(found.shape)} for {expected.dtype} {tuple(expected.shape)}"
        try:
            torch.testing.assert_close(
                found, expected, rtol=tolerance, atol=tolerance, equal_nan=True
            )
        except AssertionError:
            return f"{name} is {found.tolist()} for {expected.tolist()}"
        if (
            tolerance == 0
            and expected.is_floating_point()
            and not torch.equal(expected.nan_to_num(1).signbit(), found.nan_to_num(1).signbit())
        ):
            return f"{name} is {found.tolist()} for {expected.tolist()} (sign of zero)"
    return None


def random_pipeline(generator: random.Random) -> tuple[str, float]:
    """A pipeline, and the tolerance of what it computes."""
    kinds = generator.choice((EXACT, EXACT, EXACT + CLOSE, EXACT + CLOSE + COARSE))
    names = [generator.choice(kinds) for _ in range(generator.randint(1, 5))]
    tolerance = 0.0
    if any(name in CLOSE for name in names):
        tolerance = 1e-4
    if any(name in COARSE for name in names):
        tolerance = 0.2
    return ",".join(name + OPTIONS.get(name, "") for name in names), tolerance


Compiled = tuple[Any, Callable[..., Any]]
"""What holds the tensors, and what is called."""


def by_client(client: lazyfx.Client) -> Callable[[Any, str], Compiled]:
    """Compiles through a server."""

    def compile_(captured: Any, pipeline: str) -> Compiled:
        return captured, client.compile(captured, pipeline).graph_module()

    return compile_


def by_passes(captured: Any, pipeline: str) -> Compiled:
    """Runs the passes here, without a server; for graphs of torch.fx."""
    steps = [_REGISTRY.create(str(step[0]), step[1]) for step in parse(pipeline)]
    module = Pipeline(tuple(steps)).run(captured, RecompileLedger()).module
    return module, module


def findings(
    compile_: Callable[[Any, str], Compiled], seed: int, captures: tuple[Capture, ...]
) -> tuple[list[str], int]:
    """What goes wrong with a random program, and how many comparisons were made."""
    generator = random.Random(seed)
    program = random_program(seed)
    capture = exported if program.regions else generator.choice(captures)
    if capture not in captures:
        return [], 0
    pipelines = [random_pipeline(generator) for _ in range(4)]
    hows = ("apart", generator.choice(HOW[1:]))
    return check(compile_, program, capture, pipelines, hows)


def check(
    compile_: Callable[[Any, str], Compiled],
    program: Program,
    capture: Capture,
    pipelines: list[tuple[str, float]],
    hows: tuple[str, ...],
) -> tuple[list[str], int]:
    """What goes wrong with a program, and how many comparisons were made."""
    try:
        original, _ = capture(program)
    except Exception:  # noqa: BLE001 - what torch cannot capture
        return [], 0
    expected = {}
    for how in hows:
        try:
            captured = copy.deepcopy(original)
            call = captured.module() if capture is exported else captured
            expected[how] = run_twice(program, call, lambda c=captured: state_of(c), how)
        except Exception:  # noqa: BLE001 - what does not run
            continue
    wrong, compared = [], 0
    for pipeline, tolerance in pipelines if expected else ():
        where = f"{capture.__name__}, {pipeline}"
        try:
            compiled = compile_(copy.deepcopy(original), pipeline)
        except Exception as error:  # noqa: BLE001
            wrong.append(f"{where}: REFUSED {type(error).__name__}: {str(error)[:300]}")
            continue
        for how, wanted in expected.items():
            holder, call = copy.deepcopy(compiled)
            compared += 1
            try:
                found = run_twice(program, call, lambda c=holder: state_of(c), how)
                problem = difference(wanted, found, tolerance)
            except Exception as error:  # noqa: BLE001
                problem = f"RAISED {type(error).__name__}: {str(error)[:300]}"
            if problem:
                wrong.append(f"{where}, {how}: {problem}\n{compiled[1].code}")
                break
    return [f"seed {program.seed}\n{program.text}\n{each}" for each in wrong], compared
