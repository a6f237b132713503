"""Convolution and batch normalization become one convolution, in every spelling."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from passes.running import assert_same, decoded, run, targets
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx_server.passes import PassError, PassLimits
from lazyfx_server.passes.builtin.fusing.fuse_batch_norm import FuseConvBn

fuse = FuseConvBn()

PAIRS = [
    (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), (2, 3, 8)),
    (nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), (2, 3, 8, 8)),
    (nn.Conv2d(4, 8, 3, stride=2, groups=2, dilation=2), nn.BatchNorm2d(8), (2, 4, 8, 8)),
    (nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4, affine=False), (2, 4, 8, 8)),
    (nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3, eps=0.1), (1, 2, 4, 4, 4)),
    (nn.ConvTranspose2d(3, 5, 3, stride=2, output_padding=1), nn.BatchNorm2d(5), (2, 3, 5, 5)),
]


def trained(convolution: nn.Module, norm: Any) -> nn.Sequential:
    torch.manual_seed(0)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    return nn.Sequential(convolution, norm, nn.ReLU(inplace=True)).eval()


def exported(model: nn.Module, x: Tensor, *, decomposed: bool = False) -> GraphModule:
    program = torch.export.export(model, (x,), strict=False)
    if decomposed:
        program = program.run_decompositions()
    return program.module(check_guards=False)


@pytest.mark.parametrize("capture", ["symbolic", "export", "decomposed"])
@pytest.mark.parametrize(("convolution", "norm", "shape"), PAIRS)
def test_every_spelling(capture: str, convolution: nn.Module, norm: nn.Module, shape: Any) -> None:
    model, x = trained(convolution, norm), torch.randn(shape)
    if capture == "symbolic":
        module = symbolic_trace(model)
    else:
        module = exported(model, x, decomposed=capture == "decomposed")
    ran = run(module, fuse)
    assert ran.note == "1 pairs fused"
    assert not any("norm" in str(target) for target in targets(ran.module))
    assert_same(module, ran.module, x)
    assert type(ran.module._fused_weight_0) is Tensor


def functional(
    x: Tensor, w: Any, b: Any, mean: Any, variance: Any, gamma: Any, beta: Any
) -> Tensor:
    y = F.conv2d(x, w, b, padding=1)
    return F.batch_norm(y, mean, variance, weight=gamma, bias=beta, training=False, eps=1e-3)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w, self.b = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.randn(4))
        self.gamma, self.beta = nn.Parameter(torch.rand(4) + 1), nn.Parameter(torch.randn(4))
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("variance", torch.rand(4) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional(x, self.w, self.b, self.mean, self.variance, self.gamma, self.beta)


def test_functional_calls() -> None:
    module, x = symbolic_trace(Functional()), torch.randn(2, 3, 8, 8)
    ran = run(module, fuse)
    assert targets(ran.module) == [torch.conv2d]
    assert_same(module, ran.module, x)


def test_values_are_requested_and_needed() -> None:
    module = symbolic_trace(trained(*_plain()))
    absent = decoded(module)
    wanted = fuse.values_read(absent)
    assert len(wanted) == 6
    ran = run(absent, fuse)
    assert (ran.changed, ran.note) == (False, "skipped: values not available")
    assert run(decoded(module, values=True), fuse).note == "1 pairs fused"


def test_the_caller_s_own_weights_stay_as_they_are() -> None:
    model = trained(*_plain())
    before = model[0].weight.clone()
    ran = run(symbolic_trace(model), fuse)
    ran.module(torch.randn(1, 3, 8, 8))
    assert torch.equal(model[0].weight, before)


def test_one_weight_in_two_pairs() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.two.running_mean.fill_(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(self.conv(x)) + self.two(self.conv(x + 1))

    module = symbolic_trace(Shared().eval())
    ran = run(module, fuse)
    assert ran.note == "2 pairs fused"
    assert_same(module, ran.module, torch.randn(1, 3, 4, 4))


def test_pairs_that_must_stay() -> None:
    class Used(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Any:
            y = self.conv(x)
            return self.norm(y), y

    convolution, norm = _plain()
    padded = nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")
    grouped = nn.ConvTranspose2d(4, 4, 3, groups=2)
    for model in (
        Used().eval(),
        nn.Sequential(*_plain()).train(),
        nn.Sequential(convolution, nn.BatchNorm2d(4, track_running_stats=False)).eval(),
        nn.Sequential(padded, nn.BatchNorm2d(4)).eval(),
        nn.Sequential(grouped, nn.BatchNorm2d(4)).eval(),
        nn.Sequential(convolution, nn.ReLU(), norm).eval(),
    ):
        assert not run(symbolic_trace(model), fuse).changed
        assert fuse.values_read(symbolic_trace(model)) == frozenset()


def test_statistics_that_are_inputs_are_reported() -> None:
    module = symbolic_trace(functional)
    ran = run(module, fuse)
    assert (ran.changed, ran.note) == (
        False,
        "1 normalizations skipped: their statistics are inputs",
    )


def test_new_weights_are_bounded() -> None:
    with pytest.raises(PassError, match="setting max_folded_bytes") as caught:
        run(symbolic_trace(trained(*_plain())), fuse, limits=PassLimits(max_folded_bytes=8))
    assert caught.value.kind == "limit"


def _plain() -> tuple[nn.Module, Any]:
    return nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
