"""Tensors of a graph: roles, ties, contents."""

from __future__ import annotations

import copy
import hashlib
import pickle
from pathlib import Path

import nursery
import pytest
import torch
from checks import decode_bound
from graphs import LazyModule
from torch import nn
from torch.fx import Graph, GraphModule

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2 as pb

DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint32, torch.uint64),
]


def reading(**tensors: torch.Tensor) -> GraphModule:
    root = nn.Module()
    graph = Graph()
    for name, tensor in tensors.items():
        setattr(root, name, tensor)
    graph.output([graph.get_attr(name) for name in tensors])
    module = LazyModule(root, graph)
    for name, tensor in tensors.items():
        if not isinstance(tensor, nn.Parameter):
            delattr(module, name)
            setattr(module, name, tensor)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_come_back(dtype: torch.dtype) -> None:
    whole = torch.randint(0, 2, (3, 4)).to(dtype)
    one = whole[0, 0].expand(1)  # contiguous, with the stride 0
    for tensor in (whole, whole.t(), whole[1:, ::2], whole[0, 0], whole[:0], one, one[None]):
        data = wire.tensor_bytes(tensor)
        assert data.nbytes == tensor.numel() * dtype.itemsize
        body = pb.GraphBody.FromString(wire.encode(reading(first=tensor)).body)
        again = wire.tensor_from_bytes(body.tensors[0], bytes(data))
        assert again.dtype == dtype
        assert again.shape == tensor.shape
        assert bytes(wire.tensor_bytes(again)) == bytes(data)
        digest = wire.content_digest(tensor)
        assert digest.sha256 == hashlib.sha256(data).digest()
        assert digest.size_bytes == data.nbytes


def test_bytes_of_another_size_are_refused() -> None:
    description = pb.TensorDescription(dtype=pb.DTYPE_FLOAT32, shape=[2, 2])
    with pytest.raises(DecodeError):
        wire.tensor_from_bytes(description, b"\0" * 15)
    with pytest.raises(DecodeError):
        wire.tensor_from_bytes(pb.TensorDescription(dtype=99, shape=[1]), b"\0")


def test_conjugate_and_negative_views_have_the_bytes_that_they_show() -> None:
    tensor = torch.tensor([1 + 2j, 3 - 4j])
    for view in (tensor.conj(), tensor.conj().imag):
        assert bytes(wire.tensor_bytes(view)) == bytes(wire.tensor_bytes(view.clone()))


@pytest.mark.parametrize(
    "tensor", [torch.empty(2, device="meta"), torch.eye(2).to_sparse()], ids=["meta", "sparse"]
)
def test_a_constant_without_plain_values_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(reading(first=tensor))
    assert caught.value.node == "first"


def test_roles_and_ties_come_back() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    module = reading(first=weight, second=weight, third=torch.ones(2))
    module.register_buffer("fourth", torch.ones(2))
    with module.graph.inserting_before(module.graph.output_node()):
        node = module.graph.get_attr("fourth")
    module.graph.output_node().args = ([*module.graph.output_node().args[0], node],)
    encoded = wire.encode(module)
    rows = pb.GraphBody.FromString(encoded.body).graphs[0].attributes
    assert [row.tensor.role for row in rows] == [
        pb.TENSOR_ROLE_PARAMETER,
        pb.TENSOR_ROLE_PARAMETER,
        pb.TENSOR_ROLE_CONSTANT,
        pb.TENSOR_ROLE_BUFFER,
    ]
    assert [row.tensor.storage for row in rows] == [0, 0, 1, 2]

    stand_ins = wire.decode(encoded.body)
    assert stand_ins.a0 is stand_ins.a1
    assert stand_ins.a0.is_meta
    assert isinstance(stand_ins.a0, nn.Parameter)
    assert "a2" not in stand_ins._buffers
    assert "a3" in stand_ins._buffers
    assert wire.encode(copy.deepcopy(stand_ins)).nodes == encoded.nodes

    bound = decode_bound(encoded)
    assert bound.first is weight
    assert bound.second is weight
    assert wire.encode(bound).body == encoded.body


def test_views_of_one_storage_are_tied() -> None:
    base = torch.arange(6.0)
    tied = wire.encode(reading(first=base[:3], second=base[3:]))
    apart = wire.encode(reading(first=base[:3].clone(), second=base[3:].clone()))
    assert tied.digest != apart.digest
    assert wire.encode(wire.decode(tied.body)).body == tied.body


def test_the_body_holds_no_values() -> None:
    module = reading(first=nn.Parameter(torch.full((64, 64), 1.5)))
    encoded = wire.encode(module)
    assert len(encoded.body) < 200
    other = reading(first=nn.Parameter(torch.zeros(64, 64)))
    assert wire.encode(other).digest == encoded.digest


def test_a_pickle_of_a_decoded_module_loads_without_lazyfx(tmp_path: Path) -> None:
    encoded = wire.encode(reading(first=nn.Parameter(torch.ones(2)), second=torch.ones(3)))
    path = tmp_path / "module.pkl"
    path.write_bytes(pickle.dumps(wire.decode(encoded.body)))
    script = (
        "import pickle, sys; module = pickle.load(open(sys.argv[1], 'rb'));"
        "assert 'lazyfx' not in sys.modules; print([t.shape[0] for t in module()])"
    )
    done = nursery.run("torch", ["-c", script, str(path)], check=True)
    assert done.stdout.strip() == "[2, 3]"
