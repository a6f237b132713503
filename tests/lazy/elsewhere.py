"""Saved modules, loaded and called twice by processes that have torch alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nursery
from torch import nn
from torch.fx import GraphModule

from conformance.saved.formats import FORMATS
from conformance.saved.graphs import Saveable
from conformance.saved.loading import Loader
from conformance.saved.trying import Trial


def loader() -> Loader:
    """Its processes are forks of one that has imported torch."""
    return Loader(nursery.command("torch"))


@dataclass
class Elsewhere:
    """Collects modules, and tells what they compute otherwise as loaded pickles and packages.

    Attributes:
        folder: Where they are saved.
    """

    folder: Path
    _trials: dict[str, Trial] = field(default_factory=dict)

    def add(
        self,
        name: str,
        module: GraphModule,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        calls: nn.Module | None = None,
    ) -> None:
        """Call a copy of a module (or of `calls`) twice for what it computes."""
        (self.folder / name).mkdir()
        graph = Saveable(name, lambda: module, args, kwargs)
        self._trials[name] = Trial(graph, self.folder / name, calls)
        assert self._trials[name].repeats, name

    def differences(self) -> dict[str, str]:
        """What is not as expected, by the names of module and format."""
        with loader() as processes:
            found = {
                f"{name}.{kind}": trial.outcome(FORMATS[kind], processes)
                for name, trial in self._trials.items()
                for kind in ("pickle", "package")
            }
        return {name: note for name, (outcome, note) in found.items() if outcome != "same"}
