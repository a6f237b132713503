"""Requests of native artifacts: where they will run, and everything they depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch

from lazyfx.shared.native import machine, torch_settings, tracing_state
from lazyfx.shared.native.configuration import read_configuration
from lazyfx.shared.native.named_values import NamedValueError
from lazyfx.v1 import compiler_pb2 as pb

# Settings, states and a machine take a tenth of that.
_MAX_BYTES: Final = 64 * 1024

KEPT_PREFIX_BYTES: Final = 8
"""Bytes of a digest by which a caller names a kernel that it has."""
MAX_KEPT_BYTES: Final = 1024 * KEPT_PREFIX_BYTES
"""Bound on the names of all of them; a server of an earlier version ignores so much."""


def native_request(
    devices: Iterable[torch.device],
    mode: str | None,
    inductor: Mapping[str, Any],
    *,
    equal_blocks_once: bool = False,
) -> pb.NativeRequest:
    """Create a request from the current state of this process and thread.

    Args:
        devices: Devices of the graph's inputs.
        mode: A mode of torch.compile.
        inductor: Settings of Inductor.
        equal_blocks_once: Compile equal blocks of a graph without gradients once.

    Raises:
        LazyfxError: A setting cannot be sent, or has an invalid value; names it.
    """
    known = set(devices)
    types = {device.type for device in known}
    wanted = torch_settings.requested(mode, inductor, types)
    with torch_settings.applied(wanted):
        configuration = read_configuration()
        return pb.NativeRequest(
            target=machine.describe_host(
                vector_isa=machine.likely_vector_isa(), accelerator=machine.accelerator(known)
            ),
            states=tracing_state.read_states(types),
            settings=torch_settings.to_proto(wanted),
            configuration=configuration.digest,
            setting_digests=configuration.short_digests,
            equal_blocks_once=equal_blocks_once,
        )


def check_request(request: pb.NativeRequest) -> None:
    """Check a caller's request: each setting and state must be known and have its type.

    Raises:
        NamedValueError: One is invalid; says what is valid.
    """
    if request.ByteSize() > _MAX_BYTES:
        raise NamedValueError("native", f"is longer than {_MAX_BYTES} bytes")
    torch_settings.from_proto(request.settings)
    tracing_state.from_proto(request.states)


def conditions_digest(request: pb.NativeRequest) -> bytes:
    """SHA-256 of what an artifact depends on in addition to its graph and the machine."""
    conditions = pb.NativeRequest()
    conditions.CopyFrom(request)
    conditions.ClearField("target")
    return hashlib.sha256(conditions.SerializeToString(deterministic=True)).digest()
