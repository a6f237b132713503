"""The values of labels are those of the packages that make the events."""

from __future__ import annotations

from typing import get_args

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.execution.executor import RestartReason
from lazyfx_server.lazy.recompile_ledger import Trigger
from lazyfx_server.security.sandbox.enter import LAYERS
from lazyfx_server.store.contract import Operation
from lazyfx_server.telemetry import labels


def test_labels_take_the_values_that_there_are() -> None:
    assert get_args(Operation) == labels.STORE_OPERATIONS
    assert get_args(RestartReason) == labels.RESTART_REASONS
    assert get_args(Trigger) == labels.TRIGGERS
    assert labels.SANDBOX_LAYERS == LAYERS


def test_labels_take_the_values_of_the_service() -> None:
    methods = pb.DESCRIPTOR.services_by_name["GraphCompiler"].methods
    assert set(labels.METHODS) == {method.name for method in methods}
    reasons = {name.removeprefix("MISS_REASON_").lower() for name, _ in pb.MissReason.items()}
    # Passes without a fingerprint are refused, so that no result is uncacheable.
    assert set(labels.MISS_REASONS) == reasons - {"unspecified", "uncacheable"}
