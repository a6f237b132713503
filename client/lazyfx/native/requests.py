"""What is asked for: where a native artifact will run, and all that it depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lazyfx.native import settings, states, target
from lazyfx.v1 import compiler_pb2 as pb


def native_request(
    devices: Iterable[torch.device], mode: str | None, inductor: Mapping[str, Any]
) -> pb.NativeRequest:
    """A request that stands for this process and thread as they are now.

    Args:
        devices: Devices of the graph's inputs.
        mode: A mode of torch.compile.
        inductor: Settings of Inductor.

    Raises:
        LazyfxError: A setting is not one that travels; names it.
    """
    known = set(devices)
    types = {device.type for device in known}
    wanted = settings.requested(mode, inductor, types)
    with settings.applied(wanted):
        return pb.NativeRequest(
            target=target.describe_host(
                vector_isa=target.likely_vector_isa(), accelerator=target.accelerator(known)
            ),
            states=states.read_states(types),
            settings=settings.to_proto(wanted),
            configuration=settings.configuration_digest(),
        )


def conditions_digest(request: pb.NativeRequest) -> bytes:
    """SHA-256 of what an artifact depends on beside its graph and the machine."""
    told = pb.NativeRequest()
    told.CopyFrom(request)
    told.ClearField("target")
    return hashlib.sha256(told.SerializeToString(deterministic=True)).digest()
