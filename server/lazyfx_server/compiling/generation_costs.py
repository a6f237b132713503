"""What generating code for a graph was measured to cost, for estimates of what was saved."""

from __future__ import annotations

from cachetools import LRUCache

_MAX_GRAPHS = 16_384


class CodegenCosts:
    """Seconds for each node of a full recompile, by graph, as renderings measured them."""

    def __init__(self) -> None:
        self._known: LRUCache[bytes, float] = LRUCache(_MAX_GRAPHS)

    def of(self, tenant: bytes, graph: bytes) -> float:
        """Seconds per node of a tenant's graph; 0 when nothing of it was rendered yet."""
        return float(self._known.get(tenant + graph, 0.0))

    def record(self, tenant: bytes, graph: bytes, seconds_per_node: float) -> None:
        """Record a measurement; the last one counts."""
        if seconds_per_node > 0:
            self._known[tenant + graph] = seconds_per_node
