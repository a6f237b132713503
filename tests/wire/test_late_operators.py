"""Operators of torch that are registered when they are first needed."""

from __future__ import annotations

import re
from pathlib import Path

import nursery
import pytest
import torch
import torch._dynamo

from lazyfx.shared.wire.targets import allow_table, target_lists
from lazyfx.v1 import graph_pb2 as pb

_REGISTERS = re.compile(
    r'^(?:@|\w+ = ).*(?:(?:custom_op|triton_op)\(\s*"(\w+)::|Library\(\s*"(\w+)", "(?:DEF|FRAGMENT)")',
    re.MULTILINE,
)
# Internal steps of a compiler of distributed programs, or operators that need a mesh.
_OF_COMPILERS = {"ao", "bucketing", "cplib", "device_mesh"}
_NAMES_FIRST = """
from lazyfx.v1 import graph_pb2 as pb
from lazyfx.shared.wire.targets import allow_table as targets
print(targets.find(pb.TARGET_KIND_OPERATOR, "torch_nn::_linear_cross_entropy_batch_chunked.default"))
"""


@pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyLoss"), reason="this torch lacks the operator"
)
def test_a_process_that_first_reads_one_from_the_wire_has_torch_register_it() -> None:
    said = nursery.run("torch", ["-W", "ignore", "-c", _NAMES_FIRST], check=True).stdout
    assert "_linear_cross_entropy_batch_chunked" in said


def test_every_namespace_that_a_module_of_torch_registers_is_here_late_or_left_out() -> None:
    allow_table.register_late()
    written = {
        found[0] or found[1]
        for file in Path(torch.__file__).parent.rglob("*.py")
        if not {"testing", "test"} & set(file.parts)
        for found in _REGISTERS.findall(file.read_text("utf-8", errors="replace"))
    }
    here = {schema.name.partition("::")[0] for schema in torch._C._jit_get_all_schemas()}
    left_out = target_lists.DENIED_NAMESPACES | _OF_COMPILERS
    assert written - here - left_out == set()


@pytest.mark.parametrize("namespace", target_lists.LATE_NAMESPACES)
def test_late_operators_are_targets_as_others_are(namespace: str) -> None:
    allow_table.register_late()
    names = {s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith(f"{namespace}::")}
    if not names:
        pytest.skip("this torch lacks them")
    for name in names:
        assert allow_table.find(pb.TARGET_KIND_OPERATOR_PACKET, name)
