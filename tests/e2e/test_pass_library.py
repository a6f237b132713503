"""The pass library through a server: handles compute what the model computes."""

from __future__ import annotations

import copy

import models
import pytest
import torch
from torch.fx import symbolic_trace

import lazyfx
from lazyfx.errors import InvalidRequestError, PreconditionError

PIPELINE = [
    lazyfx.until_stable("no_op_elimination", "common_subexpression_elimination", at_most=4),
    "sink_views",
    "remove_duplicate_casts",
    "merge_matmul",
    "fuse_attention",
    "dead_code_elimination",
    "analyze",
    lazyfx.pass_spec("split_module", max_nodes=30),
]


@pytest.fixture(scope="module")
def bert():
    model, example = models.bert()
    return model, example, torch.export.export(model, (), kwargs=example, strict=False)


def test_a_long_pipeline_verified(client: lazyfx.Client, bert):
    model, example, program = bert
    module = client.compile(program, PIPELINE, verify=True)
    with torch.no_grad():
        torch.testing.assert_close(module(**example)[0], model(**example)[0])
    report = module.report
    assert report.pipeline.startswith("until_stable{at_most=4}(no_op_elimination,common")
    rows = {row.name: row for row in report.passes}
    assert rows["no_op_elimination"].runs >= 2
    assert rows["analyze"].data["flops"] > 0
    assert "parts" in rows["split_module"].note
    assert report.verified is not None
    assert report.verified.passes >= 3
    assert report.verified.max_difference < 1e-3
    assert sum(m.recompiles.requested for m in report.modules) == report.recompiles.requested
    assert next(m.path for m in report.modules) == ""
    assert "submod_0" in module.code


def test_weights_in_int8_come_back_as_constants(client: lazyfx.Client, bert):
    model, example, program = bert
    module = client.compile(program, [lazyfx.pass_spec("quantize_weights", min_elements=64)])
    graph_module = module.graph_module()
    int8 = [t for n, t in vars(graph_module).items() if n.startswith("_int8_weight")]
    int8 += [t for n, t in graph_module.named_buffers() if "_int8_weight" in n]
    assert int8
    assert all(t.dtype == torch.int8 for t in int8)
    with torch.no_grad():
        expected = model(**example)[0]
        assert (module(**example)[0] - expected).abs().max() < 0.05 * expected.abs().max()


def test_verify_refuses_a_rewrite_that_changes_results(client: lazyfx.Client, bert):
    _, _, program = bert
    aten = torch.ops.aten
    gelu = lazyfx.replace_pattern((lambda x: aten.gelu.default(x), lambda x: aten.relu.default(x)))
    with pytest.raises(PreconditionError, match="verify: the pass changed output"):
        client.compile(program, ["dead_code_elimination", gelu], verify=True)
    assert client.compile(program, ["dead_code_elimination", gelu]).report.verified is None


class Stateful(torch.nn.Module):
    """Writes a buffer and its own values, and has something to take apart."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)
        self.linear = torch.nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        y = torch.nn.functional.silu(self.linear(x) * 2)
        y.mul_(3)
        return self.norm(y)


@pytest.mark.parametrize(
    "spec",
    [
        "functionalize",
        "decompose",
        "reinplace",
        "convert_dtype",
        lazyfx.pass_spec("partition_by_support", supported=["linear"]),
    ],
    ids=str,
)
def test_writes_reach_the_callers_own_buffers(client: lazyfx.Client, spec: object):
    torch.manual_seed(0)
    model = Stateful().train()
    x = torch.randn(8, 4)
    twin = copy.deepcopy(model)  # the program shares its buffers with the model
    program = torch.export.export(model, (x,))
    module = client.compile(program, [spec])
    rebuilt = module.graph_module()
    with torch.no_grad():
        found = rebuilt(x)
    calls = program.state_dict["calls"].clone()
    mean = program.state_dict["norm.running_mean"].clone()
    with torch.no_grad():
        expected = twin(x)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert calls.item() == 1
    torch.testing.assert_close(mean, twin.norm.running_mean, rtol=0.05, atol=0.05)
    modules = sum(isinstance(part, torch.fx.GraphModule) for part in rebuilt.modules())
    assert module.report.recompiles.performed == modules, "one for each that the client rebuilt"


def test_verify_needs_shapes_and_says_so(client: lazyfx.Client):
    with pytest.raises(PreconditionError, match="verify creates random inputs from their shapes"):
        client.compile(symbolic_trace(lambda x: x + 1), ["dead_code_elimination"], verify=True)


def test_wrong_options_name_their_field(client: lazyfx.Client):
    module = symbolic_trace(lambda x: x + 1)
    for spec in (
        lazyfx.pass_spec("split_module"),
        lazyfx.pass_spec("convert_dtype", dtype="int8"),
        lazyfx.pass_spec("merge_matmul", at_least=1),
        lazyfx.pass_spec("decompose", operators=["aten.no_such"]),
        lazyfx.pass_spec("partition_by_support"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            client.compile(module, [spec])
        assert caught.value.violations[0].field.startswith("passes[0].options")


def test_a_replacement_brings_its_constants(client: lazyfx.Client):
    table = torch.tensor([1.0, 2.0, 3.0])

    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * table + self.shift

    replacement = symbolic_trace(Scaled())
    rewrite = lazyfx.replace_pattern((lambda x: torch.relu(x), replacement))
    graph = symbolic_trace(lambda x: torch.relu(x).sin())
    x = torch.randn(3)
    module = client.compile(graph, [rewrite])
    torch.testing.assert_close(module(x), (x * table + 1).sin())
    assert client.compile(graph, [rewrite]).cache.status == "hit"
    with torch.no_grad():  # other values are another rewrite, whatever the graph calls them
        replacement.shift.fill_(5.0)
    rewrite = lazyfx.replace_pattern((lambda x: torch.relu(x), replacement))
    module = client.compile(graph, [rewrite])
    assert module.cache.status == "miss"
    assert module.report.recompiles.performed == 0
    torch.testing.assert_close(module(x), (x * table + 5).sin())


def test_constants_that_do_not_fit_their_replacement_are_refused(server):
    from harness import compile_request, connected, refused

    replacement = symbolic_trace(lambda x: x * torch.ones(3))
    request = compile_request(symbolic_trace(lambda x: torch.relu(x)))
    spec = lazyfx.replace_pattern((lambda x: torch.relu(x), replacement))
    request.passes.append(spec.message())
    for constants, message in (([], "attribute"), ([b"1234"], "bytes"), ([b""] * 2, "reads 1")):
        del request.passes[0].rewrites[0].constants[:]
        request.passes[0].rewrites[0].constants.extend(constants)
        with connected(server.address) as stub:
            refusal = refused(lambda stub=stub: stub.Compile(request))
        assert refusal.code == "INVALID_ARGUMENT"
        assert message in refusal.message


def test_a_graph_is_cut_by_its_modules_whatever_ran_before(client: lazyfx.Client, bert):
    model, example, program = bert
    layers = lazyfx.split_by(program, lazyfx.in_modules("*.encoder.layer.*", "encoder.layer.*"))
    module = client.compile(program, ["default", layers])
    count = len(layers.options["at"])
    assert count == model.config.num_hidden_layers
    # Before the first layer are the embeddings.
    assert f"{count + 1} parts" in module.report.passes[-1].note
    with torch.no_grad():
        torch.testing.assert_close(module(**example)[0], model(**example)[0])
