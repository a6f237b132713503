"""The cost of a recompile: measured if possible, else fitted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Half of a full recompile is generating the source, half is compiling it.
TEXT_SHARE = 0.5

# Below this many nodes a measurement is dominated by clock noise.
_MEASURABLE_NODES = 64


@dataclass(frozen=True, slots=True)
class RecompileCost:
    """The cost of generating and compiling code, for each node.

    Attributes:
        seconds_per_node: Of a full recompile.
        measured: Measured on the same graph, not fitted over others.
    """

    seconds_per_node: float
    measured: bool = False

    def seconds(self, nodes: int) -> float:
        """The cost in seconds of full recompiles of `nodes` nodes in total."""
        return nodes * self.seconds_per_node

    def refined(self, done: Iterable[tuple[float, int, bool]]) -> RecompileCost:
        """The cost measured by these recompiles if they are large enough, else this one.

        Args:
            done: For each recompile, its seconds, its nodes, and whether the source was also
                compiled, not only generated.
        """
        done = list(done)
        nodes = sum(count for _, count, _ in done)
        if nodes < _MEASURABLE_NODES:
            return self
        seconds = sum(s if executed else s / TEXT_SHARE for s, _, executed in done)
        return RecompileCost(seconds / nodes, measured=True)


# Fitted over BERT, GPT-2, Llama, T5 and ResNet-50 in seven captures each.
FITTED = RecompileCost(29e-6)
