"""The private names of torch that saved modules are made of, each with what it is used for."""

from __future__ import annotations

import json
from importlib.util import find_spec

import nursery
import pytest
import torch
from torch.fx import Graph

from lazyfx.shared.formats.pickling import torch_rebuild
from lazyfx.shared.formats.pickling.callables import REGISTERING_MODULES
from lazyfx.shared.wire.targets import target_lists

_OPERATORS = """
import importlib, json, sys, torch
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
print(json.dumps(sorted({schema.name for schema in torch._C._jit_get_all_schemas()})))
"""


def operators(*modules: str) -> set[str]:
    """The operators of a process that has torch alone, after it has imported modules."""
    command = ["-I", "-W", "ignore", "-c", _OPERATORS, json.dumps(modules)]
    ran = nursery.run("torch", command, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_operators_of_torch_that_an_import_registers_are_found() -> None:
    late = [name for name in target_lists.LATE_NAMESPACES.values() if find_spec(name)]
    here = operators("torch._dynamo", "torch._inductor.compile_fx", "torch.onnx.ops", *late)
    with_imports = operators(*filter(find_spec, REGISTERING_MODULES.values()))
    missing = {
        name
        for name in here - with_imports
        if name.partition("::")[0] not in target_lists.DENIED_NAMESPACES
    }
    assert missing == set()


def test_a_storage_is_written_as_bytes_and_read_as_any_dtype() -> None:
    tensor = torch.arange(6).to(torch.uint16)
    stored = torch_rebuild.bytes_of(tensor.untyped_storage())
    rebuilt = torch_rebuild.rebuild_tensor(stored, 1, (3,), (1,), False, {}, torch.uint16)
    assert rebuilt.tolist() == [1, 2, 3]
    assert torch_rebuild.metadata_of(torch.zeros(2, dtype=torch.complex64).conj())["conj"]
    assert torch_rebuild.rebuild_parameter(torch.ones(2), True, {}).requires_grad


def test_the_code_generators_that_are_written() -> None:
    assert torch_rebuild.pytree_info_of(Graph()._codegen) is None
    info = torch_rebuild._PyTreeInfo(["x"], *[torch.utils._pytree.tree_flatten(((0,), {}))[1]] * 2)
    assert torch_rebuild.pytree_info_of(torch_rebuild._PyTreeCodeGen(info)) == info

    class Own(torch_rebuild.CodeGen):
        pass

    with pytest.raises(TypeError, match="Own"):
        torch_rebuild.pytree_info_of(Own())


def test_a_function_of_source() -> None:
    made = torch_rebuild.function_of("double", "def double(x):\n    return y * x\n", {"y": 2})
    assert made(3) == 6
