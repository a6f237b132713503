"""Records which code a graph ran in regions under activation checkpoints.

torch recomputes such a region in the backward pass and compares the tensors that both runs save,
which differ between compiled and uncompiled code. Meanwhile the result may have arrived, or another
call may have run other code, because its sizes did not fit.
"""

from __future__ import annotations

import weakref
from typing import Any, Final

from lazyfx.backend.torch_autograd import CheckpointRun


class CheckpointChoices:
    """Which code one graph ran, by region and by the order of the calls in it.

    Regions are kept alive only by what waits for its backward pass.
    """

    def __init__(self) -> None:
        self._regions: Final[weakref.WeakKeyDictionary[object, _Region]] = (
            weakref.WeakKeyDictionary()
        )

    def record(self, run: CheckpointRun, *, compiled: bool) -> None:
        """Record the next call of the first run of a region."""
        self._regions.setdefault(run.region, _Region()).compiled.append(compiled)

    def first_choice(self, run: CheckpointRun) -> bool | None:
        """Whether compiled code ran the first time in place of the next call of a recomputation.

        None if the first run did not get there.
        """
        region = self._regions.get(run.region)
        return None if region is None else region.next_choice(run.recomputation)


class _Region:
    def __init__(self) -> None:
        self.compiled: list[bool] = []
        self._recomputed: dict[Any, int] = {}

    def next_choice(self, recomputation: Any) -> bool | None:
        number = self._recomputed.get(recomputation, 0)
        self._recomputed[recomputation] = number + 1
        return self.compiled[number] if number < len(self.compiled) else None
