"""Why a lookup missed: which component of the key is new.

Each graph has a history of its compiles. Histories are in the store, so that reasons stay correct
across restarts; recent ones are kept in memory, which makes additions atomic.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, TypeAlias

from cachetools import LRUCache
from google.protobuf.message import DecodeError

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.key import ModuleKey
from lazyfx_server.store import Store
from lazyfx_server.v1.worker_pb2 import GraphHistory, GraphHistoryEntry

Reason: TypeAlias = "pb.MissReason.ValueType"

_TEXTS: dict[Reason, str] = {
    pb.MISS_REASON_NEW_GRAPH: "nothing has been compiled from this graph yet",
    pb.MISS_REASON_NEW_PIPELINE: "the graph is known, but this pipeline is new for it: {pipeline}",
    pb.MISS_REASON_NEW_VALUES: "graph and pipeline are known, but the tensor values are new",
    pb.MISS_REASON_NEW_ENVIRONMENT: "the stored result was built by different versions",
    pb.MISS_REASON_EVICTED: "the result was stored but has been evicted",
    pb.MISS_REASON_CORRUPT: "the stored result was corrupt and has been quarantined",
    pb.MISS_REASON_SKIPPED: "the request skipped the lookup",
}
REASON_NAMES: Final = tuple(
    pb.MissReason.Name(reason).removeprefix("MISS_REASON_").lower() for reason in _TEXTS
)
"""The reasons that there are, by their names in metrics."""

# Maximum compiles in the history of a graph; the oldest are dropped.
_HISTORY_LENGTH = 256
# Maximum histories in memory.
_MAX_HISTORIES = 10_000


@dataclass(frozen=True, slots=True)
class Miss:
    """A reason, for machines and for people."""

    reason: Reason
    explanation: str


MADE_ELSEWHERE: Final = Miss(
    pb.MISS_REASON_UNSPECIFIED, "another server with the same store compiled it meanwhile"
)
"""What a request is told that has waited for another server."""


class Explainer:
    """Explains misses, and records compiles.

    Args:
        store: The store of histories.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._recent: LRUCache[bytes, list[GraphHistoryEntry]] = LRUCache(_MAX_HISTORIES)

    async def explain(self, key: ModuleKey, pipeline: str, *, skipped: bool, damaged: bool) -> Miss:
        """Explain why `key` was not found.

        Args:
            key: The key.
            pipeline: The spelling of its pipeline.
            skipped: The request skipped the lookup.
            damaged: The stored entry was corrupt.
        """
        reason: Reason
        if skipped:
            reason = pb.MISS_REASON_SKIPPED
        elif damaged:
            reason = pb.MISS_REASON_CORRUPT
        else:
            reason = _first_new_component(key, await self._history(key))
        return Miss(reason, _TEXTS[reason].format(pipeline=pipeline or "(no passes)"))

    async def remember(self, key: ModuleKey) -> None:
        """Record that `key` has been compiled."""
        entry = GraphHistoryEntry(
            pipeline=key.pipeline, values=key.values, environment=key.environment
        )
        history = await self._history(key)
        if entry in history:
            return
        history.append(entry)
        del history[:-_HISTORY_LENGTH]
        await self._store.put(_place(key), GraphHistory(entries=history).SerializeToString())

    async def _history(self, key: ModuleKey) -> list[GraphHistoryEntry]:
        place = key.tenant + key.graph
        if (history := self._recent.get(place)) is None:
            stored = await self._store.get(_place(key))
            try:
                loaded = list(GraphHistory.FromString(stored).entries) if stored else []
            except DecodeError:
                loaded = []
            # Another request may have loaded it meanwhile, and already added to it.
            history = self._recent.setdefault(place, loaded)
        return history


def _place(key: ModuleKey) -> str:
    return f"histories/{hashlib.sha256(key.tenant + key.graph).hexdigest()}"


def _first_new_component(key: ModuleKey, history: list[GraphHistoryEntry]) -> Reason:
    if not history:
        return pb.MISS_REASON_NEW_GRAPH
    history = [entry for entry in history if entry.pipeline == key.pipeline]
    if not history:
        return pb.MISS_REASON_NEW_PIPELINE
    history = [entry for entry in history if entry.values == key.values]
    if not history:
        return pb.MISS_REASON_NEW_VALUES
    if any(entry.environment == key.environment for entry in history):
        return pb.MISS_REASON_EVICTED
    return pb.MISS_REASON_NEW_ENVIRONMENT
