"""The values of metric labels, taken from the packages that define them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.limits.urgency import RANK_NAMES
from lazyfx_server.compiling.miss_reasons import REASON_NAMES
from lazyfx_server.execution import RestartReason
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS, kind_name
from lazyfx_server.lazy.recompile_ledger import Trigger
from lazyfx_server.security.sandbox import LAYERS
from lazyfx_server.store.contract import Operation, RemoteTierName, TierName
from lazyfx_server.telemetry.labels import DefinedElsewhere


def label_values(passes: Iterable[str]) -> DefinedElsewhere:
    """The values of labels of a server with these passes."""
    service = pb.DESCRIPTOR.services_by_name["GraphCompiler"]
    return DefinedElsewhere(
        passes=tuple(passes),
        artifact_kinds=tuple(map(kind_name, ARTIFACT_KINDS)),
        methods=tuple(method.name for method in service.methods),
        priorities=tuple(RANK_NAMES.values()),
        miss_reasons=REASON_NAMES,
        triggers=get_args(Trigger),
        sandbox_layers=LAYERS,
        restart_reasons=get_args(RestartReason),
        tiers=get_args(TierName),
        remote_tiers=get_args(RemoteTierName),
        store_operations=get_args(Operation),
    )
