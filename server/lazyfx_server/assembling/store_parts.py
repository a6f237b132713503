"""What a server keeps, and the key with which it signs."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

import torch

from lazyfx_server.assembling.event_counts import Counts
from lazyfx_server.compiling.catalog import Catalog
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.security.secret_file import SecretFileError, secret_of
from lazyfx_server.security.signing import Builder, KeyRing, Signer
from lazyfx_server.settings.model import Settings
from lazyfx_server.settings.service_settings import StoreSettings
from lazyfx_server.store import (
    MemoryStore,
    SharedIdentity,
    SharedStore,
    SharedStoreSettings,
    StoreHooks,
    TieredStore,
    open_shared_store,
    open_store,
)
from lazyfx_server.store_events import store_hooks
from lazyfx_server.telemetry import Observer

_DAY = 86_400.0


@dataclass(frozen=True)
class Storage:
    """What a server keeps.

    Attributes:
        shared: What it shares with other servers; None without that.
        store: Its store, over that.
        catalog: The compiled modules in it.
        signer: Signs artifacts.
        fleet: Flights of the servers that share the store.
    """

    shared: SharedStore | None
    store: MemoryStore | TieredStore
    catalog: Catalog
    signer: Signer
    fleet: FleetFlights

    @classmethod
    def of(cls, settings: Settings, counts: Counts) -> Storage:
        """Open the store.

        Raises:
            OSError: A key or secret cannot be used.
            SharedStoreError, StoreError: The store cannot be used.
        """
        signer = artifact_signer(settings)
        # The store reports damage to the catalog, which is made from it.
        hooks = store_hooks(counts.observer.observe, lambda key: catalog.record_damage(key))
        shared = shared_store(settings, signer, hooks)
        store = store_of(settings.store, shared, hooks)
        catalog = Catalog(store)
        fleet = fleet_flights(settings, shared, store, counts.deferred)
        return cls(shared, store, catalog, signer, fleet)


def artifact_signer(settings: Settings) -> Signer:
    """The signer of artifacts, with the key from the settings.

    Raises:
        OSError: The key file cannot be used.
    """
    try:
        ring = KeyRing(settings.signing_key_file)
    except SecretFileError as error:
        raise OSError(str(error)) from error
    signing = settings.signing
    builder = Builder(
        signing.server_name, version("lazyfx"), torch.__version__, platform.python_version()
    )
    return Signer(ring, builder, signing.signature_days * _DAY)


def shared_store(settings: Settings, signer: Signer, hooks: StoreHooks) -> SharedStore | None:
    """The store that this server shares with others; None without one.

    Raises:
        OSError: The file of the tenants' secret cannot be used.
        SharedStoreError: The URL of a store cannot be used.
        StoreError: The folder of large entries cannot be used.
    """
    store = settings.store
    if store.store is None:
        return None
    try:
        secret = secret_of(settings.tenant_secret_file)
    except SecretFileError as error:
        raise OSError(str(error)) from error
    otherwise = "or name another store: another database, bucket or prefix"
    identity = SharedIdentity(
        secret,
        lambda: [key.public_key for key in signer.verify_keys],
        f"copy their file of --tenant-secret to {settings.tenant_secret_file}, {otherwise}",
        f"copy their file of --signing-key to {settings.signing_key_file}, {otherwise}",
    )
    return open_shared_store(
        SharedStoreSettings(
            store.store,
            store.blobs,
            store.store_path,
            store.store_disk_bytes,
            store.store_wait_seconds,
            max(1, int(store.store_ttl_days * _DAY)),
            store.store_lease_seconds,
        ),
        identity,
        hooks,
    )


def store_of(
    settings: StoreSettings, shared: SharedStore | None, hooks: StoreHooks
) -> MemoryStore | TieredStore:
    """The store of this server, over the one that it shares, if any.

    Raises:
        StoreError: Its folder cannot be used.
    """
    return open_store(
        settings.store_path,
        memory_bytes=settings.store_memory_bytes,
        disk_bytes=settings.store_disk_bytes,
        shared=shared,
        on_error=hooks.on_error,
        on_recovered=hooks.on_recovered,
        on_corrupt=hooks.on_corrupt,
    )


def fleet_flights(
    settings: Settings,
    shared: SharedStore | None,
    store: MemoryStore | TieredStore,
    observer: Observer,
) -> FleetFlights:
    """The flights of the servers that share a store.

    Args:
        settings: All settings.
        shared: What this server shares with others.
        store: Its store, over that.
        observer: Told how flights end.
    """
    over_shared = store if shared is not None and isinstance(store, TieredStore) else None
    leases = None if shared is None else shared.leases
    waits = FleetSettings(settings.store.store_hedge_seconds, settings.store.store_wait_seconds)
    return FleetFlights(leases, over_shared, observer, waits)
