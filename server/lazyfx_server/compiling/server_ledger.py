"""The server's ledger: work requested, performed and saved, across restarts.

It receives the same events as the metrics and adds the same counts, so that both agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timezone

from google.protobuf.timestamp_pb2 import Timestamp

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.store import StoreStats
from lazyfx_server.telemetry import Event, counting
from lazyfx_server.telemetry.counting import Key, counts_of

# In addition to the counts of events: the number of server starts, and the first one.
_STARTS = ("starts",)
_SINCE = ("since",)
_TENANT = "tenant"
# The name of the only tenant of a server without identities.
_OPEN = "open"


class ServerLedger:
    """Adds up events; `stats` returns the totals.

    Args:
        file: Stores the totals across restarts; None to start from zero.
    """

    def __init__(self, file: LedgerFile | None = None) -> None:
        self._file = file
        self._counts: defaultdict[Key, float] = defaultdict(float, file.read() if file else {})
        self._counts[_STARTS] += 1
        if _SINCE not in self._counts:
            self._counts[_SINCE] = datetime.now(timezone.utc).timestamp()
        self._written: dict[Key, float] = {}

    @property
    def restored(self) -> Mapping[Key, float]:
        """The counts of events so far, for exporters that start with them."""
        return {
            key: value
            for key, value in self._counts.items()
            if key not in (_STARTS, _SINCE) and key[0] != _TENANT
        }

    def observe(self, event: Event) -> None:
        """Record an event."""
        tenant = getattr(event, "tenant", None)
        for key, amount in counts_of(event):
            self._counts[key] += amount
            if tenant is not None and amount:
                self._counts[(_TENANT, tenant, *_for_tenant(key))] += amount

    def save(self) -> None:
        """Write the totals to their file, if they changed."""
        now = dict(self._counts)
        if self._file is not None and now != self._written and self._file.write(now):
            self._written = now

    def close(self) -> None:
        """Save, and release the file for another server."""
        self.save()
        if self._file is not None:
            self._file.close()

    def stats(self, store: StoreStats, tenant: str = "") -> pb.GetStatsResponse:
        """The totals, with current statistics of the store.

        Args:
            store: Statistics of the store.
            tenant: The caller, which sees only its own tenant.
        """
        saved = self._sum(counting.SAVED_SECONDS)
        reused = self._sum(counting.REUSED_SECONDS)
        overhead = self._sum(counting.OVERHEAD_SECONDS)
        since = Timestamp()
        since.FromMicroseconds(int(self._counts[_SINCE] * 1e6))
        return pb.GetStatsResponse(
            recompiles=_recompiles(
                self._count(counting.REQUESTED), self._count(counting.PERFORMED)
            ),
            saved_seconds=saved,
            saved_seconds_measured=self._counts[(counting.SAVED_SECONDS, counting.MEASURED)],
            performed_seconds=self._sum(counting.PERFORMED_SECONDS),
            reused_seconds=reused,
            pass_seconds=self._sum(counting.PASS_SECONDS),
            overhead_seconds=overhead,
            net_seconds=saved + reused - overhead,
            hits=self._lookups("hit"),
            misses=self._lookups("miss"),
            joins=self._lookups("joined"),
            miss_reasons=self._miss_reasons(),
            passes=self._passes(),
            tenants=[self._tenant(tenant)],
            store=pb.StoreStats(
                entries=store.entries,
                bytes=store.bytes,
                limit_bytes=store.limit_bytes,
                evictions=store.evictions,
            ),
            since=since,
            starts=int(self._counts[_STARTS]),
        )

    def _sum(self, name: str, *labels: str) -> float:
        begin = (name, *labels)
        return sum(v for key, v in self._counts.items() if key[: len(begin)] == begin)

    def _count(self, name: str, *labels: str) -> int:
        return round(self._sum(name, *labels))

    def _lookups(self, result: str) -> int:
        return int(self._counts[(counting.LOOKUPS, result)])

    def _miss_reasons(self) -> list[pb.MissCount]:
        found = []
        for key in sorted(key for key in self._counts if key[0] == counting.MISSES):
            name = f"MISS_REASON_{key[1].upper()}"
            if name in pb.MissReason.keys():  # noqa: SIM118 - an enum's wrapper, no mapping
                reason = pb.MissReason.Value(name)
                found.append(pb.MissCount(reason=reason, count=int(self._counts[key])))
        return found

    def _passes(self) -> list[pb.PassCount]:
        names = sorted(key[1] for key in self._counts if key[0] == counting.PASS_RUNS)
        return [
            pb.PassCount(
                name=name,
                runs=self._count(counting.PASS_RUNS, name),
                seconds=self._sum(counting.PASS_SECONDS, name),
                recompiles=_recompiles(
                    self._count(counting.REQUESTED, name), self._count(counting.PERFORMED, name)
                ),
            )
            for name in names
        ]

    def _tenant(self, tenant: str) -> pb.TenantCount:
        def total(name: str, *labels: str) -> float:
            return self._counts[(_TENANT, tenant, name, *labels)]

        return pb.TenantCount(
            tenant=tenant or _OPEN,
            hits=int(total(counting.LOOKUPS, "hit")),
            misses=int(total(counting.LOOKUPS, "miss")),
            joins=int(total(counting.LOOKUPS, "joined")),
            recompiles=_recompiles(
                round(total(counting.REQUESTED)), round(total(counting.PERFORMED))
            ),
            saved_seconds=total(counting.SAVED_SECONDS),
            reused_seconds=total(counting.REUSED_SECONDS),
            overhead_seconds=total(counting.OVERHEAD_SECONDS),
        )


def _for_tenant(key: Key) -> Key:
    """Counts of tenants are kept without labels, except for lookups."""
    return key if key[0] == counting.LOOKUPS else key[:1]


def _recompiles(requested: int, performed: int) -> pb.Recompiles:
    return pb.Recompiles(
        requested=requested, performed=performed, saved=max(0, requested - performed)
    )
