"""Quantization by torchao's arithmetic: `make torchao` runs it where torchao is installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from passes.captures import exported
from passes.running import outputs, run
from torch import nn
from torch.fx import symbolic_trace

from lazyfx.shared import wire
from lazyfx_server.passes import PassError, Registry

registry = Registry()
installed = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@installed
@pytest.mark.parametrize(
    ("scheme", "bits", "off"), [("torchao_int8", 8, 0.02), ("torchao_int4", 4, 0.2)]
)
@pytest.mark.parametrize("capture", ["symbolic", "export"])
def test_weights_by_torchao(scheme: str, bits: int, off: float, capture: str) -> None:
    x = torch.randn(5, 64)
    model = Model()
    module = symbolic_trace(model) if capture == "symbolic" else exported(model, {"x": x})[0]
    ran = run(module, registry.create("quantize_weights", {"min_elements": 64, "scheme": scheme}))
    assert ran.note == f"2 layers, 2 weights in int{bits}"
    (expected,), (found,) = outputs(module, (), {"x": x}), outputs(ran.module, (), {"x": x})
    assert 0 < (found - expected).abs().max() < off * expected.abs().max()
    kept = {name: value for name, value in vars(ran.module).items() if name.startswith("_int")}
    kept |= {name: value for name, value in ran.module.named_buffers() if name.startswith("_int")}
    size = sum(value.numel() * value.element_size() for n, value in kept.items() if "weight" in n)
    assert size * 8 == (64 * 32 + 32 * 8) * bits
    wire.encode(ran.module)


@installed
def test_int8_is_what_torchao_itself_makes() -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model, x = Model(), torch.randn(5, 64)
    module, _ = exported(model, {"x": x})
    one = registry.create("quantize_weights", {"min_elements": 64, "scheme": "torchao_int8"})
    ran = run(module, one)
    quantize_(model.layers, Int8WeightOnlyConfig())
    with torch.no_grad():
        torch.testing.assert_close(ran.module(x=x), model(x), rtol=1e-4, atol=1e-5)


@installed
def test_layers_that_groups_do_not_fit_stay() -> None:
    module = symbolic_trace(Model())
    options = {"min_elements": 64, "scheme": "torchao_int4", "group_size": 64}
    assert (
        run(module, registry.create("quantize_weights", options)).note
        == "1 layers, 1 weights in int4"
    )


def test_without_torchao_the_schemes_are_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lazyfx_server.passes.torch_steps import torchao_names

    monkeypatch.setattr(torchao_names, "is_installed", lambda: False)
    with pytest.raises(
        PassError, match=r"needs torchao.*pip install 'lazyfx\[torchao\]'"
    ) as caught:
        registry.create("quantize_weights", {"scheme": "torchao_int4"})
    assert caught.value.field == "options"
    assert registry.create("quantize_weights").fingerprint() == ""


@pytest.mark.parametrize("options", [{"scheme": "int2"}, {"group_size": 3}])
def test_bad_options(options: dict[str, object]) -> None:
    with pytest.raises(PassError):
        registry.create("quantize_weights", options)
