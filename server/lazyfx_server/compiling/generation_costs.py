"""Measured costs of code generation per graph, for estimates of savings."""

from __future__ import annotations

from cachetools import LRUCache

_MAX_GRAPHS = 16_384


class CodegenCosts:
    """Seconds per node of a full recompile, by graph, measured during rendering."""

    def __init__(self) -> None:
        self._known: LRUCache[bytes, float] = LRUCache(_MAX_GRAPHS)

    def of(self, tenant: bytes, graph: bytes) -> float:
        """Seconds per node of a tenant's graph; 0 if none of it was rendered yet."""
        return float(self._known.get(tenant + graph, 0.0))

    def record(self, tenant: bytes, graph: bytes, seconds_per_node: float) -> None:
        """Record a measurement, replacing the previous one."""
        if seconds_per_node > 0:
            self._known[tenant + graph] = seconds_per_node
