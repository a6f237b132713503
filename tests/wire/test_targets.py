"""The allow-table: every name leads to its callable and back, and to nothing else."""

from __future__ import annotations

import operator
import types

import pytest
import torch

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.targets import allow_table, target_lists
from lazyfx.v1 import graph_pb2 as pb


def test_every_name_leads_to_one_callable_and_back() -> None:
    wrong = []
    for name, function in allow_table.functions().items():
        found = allow_table.name_of(function)
        assert found is not None, name
        # Two names may lead to one callable; the first one is its name.
        kind, own = found
        if kind == pb.TARGET_KIND_FUNCTION and allow_table.find(kind, own) is not function:
            wrong.append(name)
    assert not wrong


def test_operators_are_found_by_exact_name() -> None:
    for target in (
        torch.ops.aten.add.Tensor,
        torch.ops.aten.relu.default,
        torch.ops.aten.sym_size.int,
        torch.ops.prims.convert_element_type.default,
        torch.ops.aten.mm,
        torch.ops.higher_order.cond,
    ):
        key = allow_table.name_of(target)
        assert key is not None
        assert allow_table.find(*key) is target


def test_a_custom_operator_travels_where_it_is_registered() -> None:
    @torch.library.custom_op("lazyfx_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    operator = torch.ops.lazyfx_tests.twice.default
    key = allow_table.name_of(operator)
    assert key == (pb.TARGET_KIND_OPERATOR, "lazyfx_tests::twice.default")
    assert allow_table.find(*key) is operator


def test_nothing_that_reaches_outside_is_listed() -> None:
    words = ("load", "save", "seed", "compile", "from_file", "open", "exec", "eval", "import")
    names = {n for n in allow_table.functions() if n.rpartition(".")[2].strip("_") in words}
    # BigBird seeds NumPy while it trains; of torch's generator graphs draw all the same.
    assert names == {"torch._numpy.random.seed"}
    assert not {"backward", "numpy", "data_ptr", "__reduce__"} & allow_table.methods()
    assert not {"__class__", "__dict__", "grad_fn", "_base"} & target_lists.ATTRIBUTES


def test_what_captures_of_this_torch_write_is_listed() -> None:
    for function in (
        torch.amp.autocast_mode._enter_autocast,
        torch.amp.autocast_mode._exit_autocast,
        torch._C._set_grad_enabled,
        torch._C._nn.linear,
        torch._C._nn.scaled_dot_product_attention,
        torch._functorch.predispatch._vmap_increment_nesting,
        torch._functorch.predispatch._add_batch_dim,
        torch.nn.attention._sdpa_kernel,
        torch._sym_sqrt,
        torch.Size,
        getattr,
        torch.relu_,
    ):
        assert allow_table.name_of(function) is not None, function


def test_what_dynamo_creates_in_each_trace_has_one_name() -> None:
    from torch import _numpy as arrays
    from torch._dynamo import utils

    for wrapped, name in (
        (utils.numpy_to_tensor_wrapper(arrays.sqrt), "torch._numpy.sqrt"),
        (utils.numpy_to_tensor_wrapper(arrays.rint), "torch._numpy.rint"),
        (utils.numpy_to_tensor_wrapper(arrays.power), "torch._numpy.power"),
        (utils.numpy_to_tensor_wrapper(arrays.linalg.norm), "torch._numpy.linalg.norm"),
        (utils.numpy_to_tensor_wrapper(arrays.random.rand), "torch._numpy.random.rand"),
        (utils.numpy_to_tensor_wrapper(arrays.float32), "torch._numpy.float32"),
        (utils.numpy_method_wrapper("reshape"), "torch._numpy.ndarray.reshape"),
        (utils.numpy_operator_wrapper(operator.add), "torch._numpy.operator.add"),
    ):
        assert allow_table.name_of(wrapped) == (pb.TARGET_KIND_FUNCTION, name)
        twin = allow_table.find(pb.TARGET_KIND_FUNCTION, name)
        assert type(twin) is type(wrapped)
        assert allow_table.name_of(twin) == (pb.TARGET_KIND_FUNCTION, name)
    for denied in (
        utils.numpy_to_tensor_wrapper(print),
        utils.numpy_to_tensor_wrapper(arrays.set_default_dtype),
        utils.numpy_to_tensor_wrapper(arrays.from_dlpack),
        utils.numpy_to_tensor_wrapper(arrays.ndarray),
        utils.numpy_method_wrapper("__reduce__"),
        utils.numpy_method_wrapper("__class__"),
        utils.numpy_operator_wrapper(operator.attrgetter),
    ):
        assert allow_table.name_of(denied) is None


def test_a_builtin_is_allowed_where_its_operator_is() -> None:
    assert allow_table.name_of(torch._foreach_add) == (
        pb.TARGET_KIND_FUNCTION,
        "torch._foreach_add",
    )
    assert allow_table.name_of(torch._weight_norm) is not None
    assert allow_table.name_of(torch.from_file) is None
    assert allow_table.name_of(torch._cufft_set_plan_cache_max_size) is None


def test_every_function_of_torch_nn_functional_travels() -> None:
    module = torch.nn.functional
    missing = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and isinstance(value, types.FunctionType | types.BuiltinFunctionType)
        and allow_table.name_of(value) is None
    ]
    assert set(missing) == target_lists.PUBLIC_MODULES_DENIED & set(vars(module))


@pytest.mark.parametrize("namespace", sorted(target_lists.DENIED_NAMESPACES))
def test_operators_of_a_denied_namespace_are_not_found(namespace: str) -> None:
    """Also those that only other builds of torch have, as `cuda::_set_device`."""
    with torch.library._scoped_library(namespace, "FRAGMENT") as library:
        library.define("lazyfx_probe(int x) -> int")
        for kind, name in (
            (pb.TARGET_KIND_OPERATOR, f"{namespace}::lazyfx_probe.default"),
            (pb.TARGET_KIND_OPERATOR_PACKET, f"{namespace}::lazyfx_probe"),
        ):
            with pytest.raises(DecodeError, match="not in the table of allowed targets"):
                allow_table.find(kind, name)


@pytest.mark.parametrize(
    "name",
    [
        *("aten::__round_to_zero_floordiv.int", "aten::divmod.int", "aten::floordiv.int"),
        *("aten::ljust.default", "aten::zfill.default", "aten::wait.default"),
        *("prim::rpc_async.default", "prim::PythonOp.default", "prim::MKLDNNClamp.default"),
    ],
)
def test_what_torchscript_alone_has_is_not_found(name: str) -> None:
    packet, _, overload = name.partition(".")
    namespace, _, base = packet.partition("::")
    operators = getattr(getattr(torch.ops, namespace), base)
    assert allow_table.name_of(getattr(operators, overload)) is None
    assert allow_table.name_of(operators) is None


@pytest.mark.parametrize("name", ["aten::gcd.int", "aten::remainder.int", "aten::mul.left_t"])
def test_of_an_operator_torchscripts_own_overloads_are_not_found(name: str) -> None:
    with pytest.raises(DecodeError):
        allow_table.find(pb.TARGET_KIND_OPERATOR, name)


def test_a_packet_whose_torchscript_overloads_do_no_harm_is_found() -> None:
    allow_table.find(pb.TARGET_KIND_OPERATOR_PACKET, "aten::mul")
