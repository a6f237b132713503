"""Writes the golden files of the torch that runs this: `python tests/golden/make.py`.

Golden files are messages of today that every later version must read, and in which it must
find the same digest. They are made once for a torch and a format, and never again: a change
that would need another file for an old one has broken the format. Files for a new torch, or
for a new part of the format, are added next to the old ones.
"""

# ruff: noqa: E402, T201 - a script that finds the tests next to it, and says what it did

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "wire")]

import captures
import torch
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from torch import nn
from torch.fx import Graph, GraphModule

from lazyfx.shared import pass_specs, wire
from lazyfx.v1 import compiler_pb2 as pb

FOLDER = f"torch-{'.'.join(torch.__version__.split('+')[0].split('.')[:2])}"


class Small(nn.Module):
    """Layers of several kinds, a buffer, a tied weight, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.linear.weight
        self.dropout = nn.Dropout(0.25)
        self.register_buffer("scale", torch.full((4,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.dropout(self.tied(self.linear(y) * self.scale)) + torch.tensor([1.0, 2, 3, 4])


class Branches(nn.Module):
    """Nested graphs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x.sin(), (x,))


class Mixed(nn.Module):
    """Contexts that are nodes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x * 2
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return y @ x


def literals() -> GraphModule:
    """Every kind of argument."""
    graph = Graph()
    x = graph.placeholder("x")
    y = graph.placeholder("y", default_value=1.5)
    values: list[Any] = [
        *(None, True, False, 0, -1, 2**62, -(2**63), 0.0, -0.0, 0.1, float("nan"), float("-inf")),
        *("", "text", "cuda:0", "\N{GREEK SMALL LETTER PI}", ..., 1j, complex(0.0, -0.0)),
        *(torch.Size([2, 3]), slice(None, 3, None), slice(x, None, y), [x, [y, (1,)]], (), {}),
        *(torch.device("cpu"), torch.device("cuda"), torch.device("cuda", 0), torch.relu),
        *(torch.device("cuda", 1), torch.ops.aten.relu.default, torch.ops.aten.relu),
        *({"b": x, "a": 1, 2: y, False: None}, *vars_of(torch.dtype), torch.sparse_coo),
        *(torch.contiguous_format, torch.channels_last, torch.preserve_format, torch.strided),
    ]
    node = graph.call_function(torch.ops.aten.add.Tensor, (x, *values), {"z": 1, "alpha": 2})
    node = graph.call_method("to", (node, "cuda:1"))
    listed = graph.call_function(list, ({"b": x, "a": node},))
    graph.output({"b": listed, "a": [node, (y, None)]})
    return captures_lazy(graph)


def vars_of(kind: type) -> list[Any]:
    """The dtypes that the format had from its first day."""
    names = (
        "float32 float64 float16 bfloat16 uint8 int8 int16 int32 int64 bool complex32 complex64 "
        "complex128 float8_e4m3fn float8_e5m2 uint16 uint32 uint64"
    )
    return [getattr(torch, name) for name in names.split()]


def captures_lazy(graph: Graph) -> GraphModule:
    """A module of a graph whose code is of no interest."""
    return torch.fx._lazy_graph_module._LazyGraphModule(nn.Module(), graph)


def constants() -> GraphModule:
    """Constants of many dtypes, strides and offsets, some in one memory."""
    base = torch.arange(12)
    tensors = [base.view(3, 4), base.view(3, 4).t(), base[3:5], base.view(3, 4)[:, ::2]]
    tensors += [torch.ones(2).to(dtype) for dtype in vars_of(torch.dtype)]
    tensors += [torch.tensor(3.0), torch.ones(0, 2), torch.tensor([1 + 2j]).conj()]
    graph = Graph()
    module = captures_lazy(Graph())
    nodes = []
    for i, tensor in enumerate(tensors):
        setattr(module, f"constant_{i}", tensor)
        nodes.append(graph.get_attr(f"constant_{i}"))
    graph.output(nodes)
    module.graph = graph
    return module


def graphs() -> Iterator[tuple[str, GraphModule]]:
    """Names and graphs."""
    torch.manual_seed(0)
    image = {"x": torch.randn(2, 3, 8, 8)}
    square = {"x": torch.randn(4, 4)}
    yield "literals", literals()
    yield "constants", constants()
    yield "symbolic", captures.symbolic(Small().eval(), image)[0].module
    yield "training", captures.symbolic(Small().train(), image)[0].module
    makers: list[tuple[str, Callable[..., list[captures.Capture]], bool]] = [
        ("export", captures.exported, False),
        ("export_dynamic", captures.exported, True),
        ("dynamo", captures.dynamo, False),
        ("dynamo_dynamic", captures.dynamo, True),
        ("aot", captures.aot, False),
    ]
    for label, maker, dynamic in makers:
        for i, capture in enumerate(maker(Small(), image, dynamic)):
            yield f"{label}_{i}", capture.module
    yield "cond", captures.exported(Branches(), square)[0].module
    yield "contexts", captures.exported(Mixed(), square)[0].module


def messages() -> Iterator[tuple[str, Message]]:
    """Names and messages of the service, every field that a client of today fills or reads."""
    encoded = wire.encode(
        captures.symbolic(Small().eval(), {"x": torch.ones(1, 3, 8, 8)})[0].module
    )
    rewrite = pass_specs.replace_pattern(
        (lambda x: torch.relu(torch.relu(x)), lambda x: torch.relu(x))
    )
    fold = pass_specs.pass_spec("constant_fold", max_bytes=4096)
    request = pb.CompileRequest(graph=encoded.message(), passes=[fold.message(), rewrite.message()])
    request.graph_digest.sha256 = encoded.digest
    request.graph_digest.size_bytes = len(encoded.body)
    value = request.values.add(graph=0, attribute=1)
    value.content.sha256, value.content.size_bytes = bytes(range(32)), 64
    request.skip_cache_lookup = True
    yield "CompileRequest", request
    response = pb.CompileResponse(module_key=b"\1" * 32, constants=[value.content])
    response.cache.status = pb.CACHE_STATUS_MISS
    response.cache.miss_reason = pb.MISS_REASON_NEW_GRAPH
    response.report.nodes_before, response.report.nodes_after = 7, 5
    response.report.recompiles.requested = 2
    response.report.passes.add(name="constant_fold")
    yield "CompileResponse", response
    artifact = pb.GetArtifactRequest(module_key=b"\1" * 32, kind=pb.ARTIFACT_KIND_CODE, offset=7)
    artifact.presentation.CopyFrom(encoded.presentation)
    yield "GetArtifactRequest", artifact
    upload = pb.UploadBlobsRequest(digest=request.graph_digest, offset=3, data=b"bytes")
    yield "UploadBlobsRequest", upload


def main() -> None:
    """Write what is not there yet."""
    folder = HERE / FOLDER
    folder.mkdir(exist_ok=True)
    record = folder / "digests.json"
    digests: dict[str, dict[str, Any]] = json.loads(record.read_text()) if record.exists() else {}
    for name, module in graphs():
        if name in digests:
            continue
        encoded = wire.encode(module)
        wire.check_canonical(encoded.body)
        path = folder / f"{name}.lazyfx"
        path.write_bytes(encoded.message().SerializeToString(deterministic=True))
        digests[name] = {"digest": encoded.digest.hex(), "nodes": encoded.nodes}
    record.write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    if torch.__version__.startswith("2.13"):
        for name, message in messages():
            path = HERE / "messages" / f"{name}.binpb"
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                path.write_bytes(message.SerializeToString(deterministic=True))
                text = json.dumps(MessageToDict(message), indent=1, sort_keys=True)
                path.with_suffix(".json").write_text(text + "\n")
    print(f"{len(digests)} graphs in {folder.name}")


if __name__ == "__main__":
    main()
