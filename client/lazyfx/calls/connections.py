"""The channels of a client: one for each of its addresses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from lazyfx.calls import forking
from lazyfx.calls.channel import REPLICA_KEY, methods_of
from lazyfx.calls.watching import ENCRYPTED_CHECK_SECONDS, HEALTH_CHECK, SECOND_CHECK_SECONDS
from lazyfx.flows import Place
from lazyfx.shared.addresses import is_balanced_name, split_addresses
from lazyfx.trust.access import Access, Tls

Channel = TypeVar("Channel", covariant=True)


class OpenChannel(Protocol[Channel]):
    """Opens a channel to one address; see `channel.open_async_channel`."""

    def __call__(self, address: str, tls: Tls | None, *, is_replica: bool = False) -> Channel:
        """Open it."""


class Connections(Generic[Channel]):
    """A channel to each address of a client.

    Args:
        address: One address or several, as `addresses.read_addresses` returns them.
        access: Credentials to send.
        open_channel: Opens a channel of the driver's kind.
        streams: Read a single response as a stream of one; see `channel.methods_of`.

    Attributes:
        channels: In the order of the addresses.
        are_replicas: Whether another server can take over when one does not answer.
        second_check_seconds: How long a health check over a new connection may take.

    Raises:
        ForkedProcessError: This process was forked after a client had been opened in its parent.
        LazyfxError: A certificate cannot be read, or a token would be sent unencrypted.
    """

    def __init__(
        self,
        address: str,
        access: Access,
        open_channel: OpenChannel[Channel],
        *,
        streams: bool = False,
    ) -> None:
        forking.mark_grpc_used()
        self._metadata = access.metadata(address)
        addresses = split_addresses(address)
        are_replicas = len(addresses) > 1 or is_balanced_name(address)
        self.channels: Sequence[Channel] = [
            open_channel(one, access.tls, is_replica=are_replicas) for one in addresses
        ]
        untyped: Any = self.channels
        self.are_replicas = are_replicas
        self.second_check_seconds = (
            SECOND_CHECK_SECONDS if access.tls is None else ENCRYPTED_CHECK_SECONDS
        )
        self._open = [
            partial(open_channel, one, access.tls, is_replica=are_replicas) for one in addresses
        ]
        self._checks = [channel.unary_unary(HEALTH_CHECK) for channel in untyped]
        self._methods = [methods_of(channel, streams=streams) for channel in self.channels]
        self._unary_methods = (
            [methods_of(channel) for channel in self.channels] if streams else self._methods
        )

    def method(self, name: str, place: Place) -> Any:
        """The multi-callable of a method, at a replica."""
        return self._methods[place.replica][name]

    def unary_method(self, name: str, place: Place) -> Any:
        """The multi-callable of a method that reads a single response as such."""
        return self._unary_methods[place.replica][name]

    def check(self, place: Place) -> Any:
        """The multi-callable of a health check at a replica; its request is empty."""
        return self._checks[place.replica]

    def open_another(self, place: Place) -> Channel:
        """One more channel to a replica, which the caller closes."""
        channel = self._open[place.replica]()
        forking.leak_in_children(channel)
        return channel

    def metadata(self, place: Place) -> Sequence[tuple[str, str]]:
        """The metadata of a call to a replica."""
        return (*self._metadata, (REPLICA_KEY, place.key)) if place.key else self._metadata
