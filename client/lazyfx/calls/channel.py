"""The gRPC channels to a server: their retry policy, balancing, health checks and keepalive."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import grpc
import grpc.aio
from grpc.experimental import ChannelOptions

from lazyfx.shared.addresses import is_balanced_name
from lazyfx.trust.access import Tls
from lazyfx.trust.credentials import read_file
from lazyfx.v1 import compiler_pb2 as pb

CONNECTED_OR_FAILED: Final = (
    grpc.ChannelConnectivity.READY,
    grpc.ChannelConnectivity.TRANSIENT_FAILURE,
    grpc.ChannelConnectivity.SHUTDOWN,
)
CLOSED_MEANWHILE = "the client was closed while this call was waiting"

MAX_MESSAGE_BYTES = 64 * 2**20
# No response is one large message: artifacts are streamed in chunks.
MAX_ANSWER_BYTES = 16 * 2**20
_SERVICE = "lazyfx.v1.GraphCompiler"

# Every method is safe to repeat: compiles are keyed by content, uploads by digest.
_RETRIED = ("Compile", "FindMissingBlobs", "ListPasses", "GetServerInfo", "GetStats", "GetArtifact")
_RETRY_POLICY: Final = {
    "name": [{"service": _SERVICE, "method": method} for method in _RETRIED],
    "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.1s",
        "maxBackoff": "2s",
        "backoffMultiplier": 2,
        # A stopping server answers calls that arrive at that moment with CANCELLED.
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
    },
}
# gRPC's own retries would go to the replica that failed; `calls.replicas` chooses another one.
_ONE_SERVER: Final = {"methodConfig": [_RETRY_POLICY]}
# Only these policies check health: a replica that starts or drains gets no calls.
_REPLICA: Final = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": _SERVICE},
}
REPLICA_KEY: Final = "lazyfx-replica-key"
_SERVERS_OF_A_NAME: Final = {
    **_REPLICA,
    "loadBalancingConfig": [
        {"ring_hash_experimental": {"requestHashHeader": REPLICA_KEY}},
        {"round_robin": {}},
    ],
}
# gRPC reads the header only if this is set; it is read when a channel is opened.
_RING_HASH_VARIABLE: Final = "GRPC_EXPERIMENTAL_RING_HASH_SET_REQUEST_HASH_KEY"

_SHARED: Sequence[tuple[str, str | int]] = (
    ("grpc.enable_retries", 1),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # By default, channels of one process to one server share their connections.
    ("grpc.use_local_subchannel_pool", 1),
)
# The options for one server.
_OPTIONS: Sequence[tuple[str, str | int]] = (
    *_SHARED,
    ("grpc.service_config", json.dumps(_ONE_SERVER)),
    # A restarted server is found within about two seconds, however long it was down.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Limit for one connection attempt: lost packets are sent again after 1, 3 and 7 s.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    # A dead peer is noticed within a minute, also between calls. gRPC 1.85 waits for the answer to
    # a ping for as long as the third option says (by default a minute), not the second one.
    ("grpc.keepalive_time_ms", 40_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)
# Another replica can answer, so one that does not is given up earlier.
_OF_REPLICAS: Sequence[tuple[str, str | int]] = (
    *_SHARED,
    # Sooner, because the next replica may be the next to restart.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.keepalive_time_ms", 12_000),
    ("grpc.keepalive_timeout_ms", 8_000),
    ("grpc.http2.ping_timeout_ms", 8_000),
    # A name is resolved again when a server behind it is lost, but gRPC would wait until 30 s after
    # the last time: too long if all of them have been replaced.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
)


# The waiting thread polls gRPC itself: no thread is started for a call.
_IN_ONE_THREAD = (ChannelOptions.SingleThreadedUnaryStream, 1)


def methods_of(channel: Any, *, streams: bool = False) -> dict[str, Any]:
    """The multi-callables of the service by method name; they take and return bytes.

    Args:
        channel: A channel of `grpc` or `grpc.aio`.
        streams: Read a single response as a stream of one, which is identical on the wire.
    """
    methods = {}
    for method in pb.DESCRIPTOR.services_by_name["GraphCompiler"].methods:
        asks = "stream" if method.client_streaming else "unary"
        one_answer = not method.server_streaming and (method.client_streaming or not streams)
        multi_callable = getattr(channel, f"{asks}_{'unary' if one_answer else 'stream'}")
        methods[method.name] = multi_callable(f"/{_SERVICE}/{method.name}")
    return methods


def open_async_channel(
    address: str, tls: Tls | None, *, is_replica: bool = False
) -> grpc.aio.Channel:
    """An asynchronous channel to one address; nothing is sent before the first call.

    Args:
        address: "host:port".
        tls: How to encrypt; None for plaintext.
        is_replica: Other servers can take over its calls: they fail at once if it is not healthy.

    Raises:
        LazyfxError: A certificate cannot be read.
    """
    options = _options(address, is_replica)
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    credentials, names = _secured(tls)
    return grpc.aio.secure_channel(address, credentials, options=[*options, *names])


def open_blocking_channel(
    address: str, tls: Tls | None, *, is_replica: bool = False
) -> grpc.Channel:
    """A blocking channel, for any thread; see `open_async_channel`."""
    options = [*_options(address, is_replica), _IN_ONE_THREAD]
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    credentials, names = _secured(tls)
    return grpc.secure_channel(address, credentials, options=[*options, *names])


def _options(address: str, is_replica: bool) -> list[tuple[str, str | int]]:
    if not is_replica:
        return [*_OPTIONS]
    config: Mapping[str, object] = _REPLICA
    if is_balanced_name(address):
        # gRPC refuses calls of this policy if the variable has another value.
        is_hashed = os.environ.setdefault(_RING_HASH_VARIABLE, "true").lower() == "true"
        config = _SERVERS_OF_A_NAME if is_hashed else _REPLICA
    return [*_OF_REPLICAS, ("grpc.service_config", json.dumps(config))]


def _secured(tls: Tls) -> tuple[grpc.ChannelCredentials, Sequence[tuple[str, str]]]:
    credentials = grpc.ssl_channel_credentials(
        root_certificates=read_file(tls.ca, "Tls(ca=...)") if tls.ca else None,
        private_key=read_file(tls.key, "Tls(key=...)") if tls.key else None,
        certificate_chain=read_file(tls.certificate, "Tls(certificate=...)")
        if tls.certificate
        else None,
    )
    if not tls.server_name:
        return credentials, ()
    return credentials, (("grpc.ssl_target_name_override", tls.server_name),)
