"""verify=True: a pass that changes a result is refused, one that does not is accepted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from passes.running import decoded
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from wire import captures
from wire.captures import Capture

from lazyfx_server.lazy import RecompileLedger, lazy_job
from lazyfx_server.passes import (
    Driver,
    Pass,
    PassContext,
    PassError,
    PassLimits,
    PassResult,
    Pipeline,
    Registry,
)
from lazyfx_server.passes.verify import NumericVerifier


@dataclass(frozen=True)
class Wrong(Pass):
    """Does harm in one of several ways."""

    name: ClassVar[str] = "wrong"

    how: str = "value"

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        harm: dict[str, Callable[[GraphModule], None]] = {
            "value": lambda m: _retarget(m, "mul", torch.add),
            "write": lambda m: _drop(m, "add_"),
            "random": lambda m: _drop(m, "dropout"),
            "gradient": lambda m: _detach(m),
            "crash": lambda m: _retarget(m, "mul", torch.cat),
            "order": lambda m: _named(m, "sum").append(_named(m, "add_")),
            "nothing": lambda m: None,
        }
        harm[self.how](module)
        module.recompile()
        return PassResult(module, True)


def _named(module: GraphModule, name: str) -> Node:
    return next(n for n in module.graph.nodes if name in str(n.target) and n.op.startswith("call"))


def _retarget(module: GraphModule, name: str, target: Callable[..., object]) -> None:
    node = _named(module, name)
    node.op, node.target = "call_function", target


def _drop(module: GraphModule, name: str) -> None:
    node = _named(module, name)
    node.replace_all_uses_with(node.args[0])
    module.graph.erase_node(node)


def _detach(module: GraphModule) -> None:
    node = _named(module, "mul")
    with module.graph.inserting_after(node):
        detached = module.graph.call_method("detach", (node,))
    node.replace_all_uses_with(detached, delete_user_cb=lambda user: user is not detached)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return torch.nn.functional.dropout(self.linear(x) * 3, 0.5, True).sum() + self.count


def verified(module: GraphModule, *passes: Pass, max_bytes: int = 2**31):
    ledger = RecompileLedger()
    verifier = NumericVerifier(max_bytes)
    with lazy_job(ledger):
        driver = Driver(ledger, PassLimits(), verifier=verifier)
        verifier.start(driver.adopt(module))
        Pipeline(passes).run_in_job(module, driver)
    assert ledger.performed() == 0
    return verifier


@pytest.fixture(scope="module")
def step() -> Capture:
    (capture,) = captures.dynamo(Model(), {"x": torch.randn(2, 4)})
    return capture


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("value", "changed output 0"),
        ("write", "changed"),
        ("random", "changed output 0"),
        ("gradient", "changed gradient"),
        ("crash", "does not run"),
    ],
)
def test_a_pass_that_changes_a_result_is_refused(step: Capture, how: str, what: str) -> None:
    cse = Registry().create("common_subexpression_elimination")
    with pytest.raises(PassError, match=what) as caught:
        verified(decoded(step.module), cse, Wrong(how))
    error = caught.value
    assert (error.pass_name, error.field, error.before) == ("wrong", "passes[1]", (cse.name,))
    assert error.kind == "precondition"


def test_a_pass_that_changes_nothing_passes(step: Capture) -> None:
    found = verified(decoded(step.module), Wrong("nothing"))
    assert found.passes == 1
    assert found.tensors >= 4, "an output, written inputs, gradients"
    assert found.max_difference == 0


class Shared(nn.Module):
    """Reads a buffer after a part of it is written, by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.arange(12.0).view(3, 4).t())
        self.register_buffer("part", self.whole[1:3])
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("bits", self.weight.data.view(torch.int32)[1:])

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.part.add_(1)
        return x + self.whole.sum(), x * self.weight * 2, self.bits * 2


@pytest.mark.parametrize("values", [False, True])
def test_attributes_that_share_memory_share_it_here_too(values: bool) -> None:
    (capture,) = captures.exported(Shared(), {"x": torch.randn(4)})
    module = capture.module
    assert verified(decoded(module, values=values), Wrong("nothing")).max_difference == 0
    with pytest.raises(PassError, match="changed output 0"):
        verified(decoded(module, values=values), Wrong("order"))


def test_inputs_need_shapes() -> None:
    module = torch.fx.symbolic_trace(Model())
    with pytest.raises(PassError, match="input has none") as caught:
        verified(decoded(module))
    assert (caught.value.field, caught.value.kind) == ("verify", "precondition")


@pytest.mark.parametrize("device", ["cuda:7", "xpu", "mps"])
def test_a_device_that_the_server_lacks_is_named(device: str) -> None:
    with FakeTensorMode():
        x = torch.empty(2, 3, device=device)
    module = torch.fx.symbolic_trace(lambda x: torch.sin(x))
    next(iter(module.graph.nodes)).meta["val"] = x
    with pytest.raises(PassError, match=device) as caught:
        NumericVerifier(PassLimits()).start(module)
    assert (caught.value.kind, caught.value.field) == ("precondition", "verify")


def test_tensors_are_bounded(step: Capture) -> None:
    with pytest.raises(PassError, match="the limit is 64") as caught:
        verified(decoded(step.module), max_bytes=64)
    assert caught.value.kind == "limit"


def test_the_built_in_passes_hold_on_real_models(capture: Capture) -> None:
    names = ("remove_dropout", "constant_fold", "fuse_conv_bn", "normalize_arguments",
             "common_subexpression_elimination", "dead_code_elimination")  # fmt: skip
    if capture.label not in ("dynamo0", "forward0", "backward1"):
        pytest.skip("symbolic captures carry no shapes; test_pass_library.py does exported ones")
    module = decoded(copy.deepcopy(capture.module), values=True)
    verified(module, *(Registry().create(name) for name in names))
