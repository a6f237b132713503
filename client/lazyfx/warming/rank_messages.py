"""What ranks that run one after the other send each other: broadcasts, in files."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections import Counter
from pathlib import Path
from typing import Any, Final

import torch

from lazyfx.errors import LazyfxError

# Broadcasts of seeds, sizes and paths are small; those of weights change no graph.
_MAX_BYTES: Final = 1 << 20


class MissingMessageError(LazyfxError):
    """The rank that sends something has not run."""


class RankMessages:
    """Broadcasts of one run of all ranks.

    The files are written by the user's own script and read by it, in a folder that only this user
    may read, so pickle is used as torch.distributed uses it.

    Args:
        folder: An existing private folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._counts: Counter[tuple[str, str]] = Counter()

    def exchange(self, kind: str, place: str, is_source: bool, value: Any) -> Any:
        """Leave a value as its source; otherwise find it.

        Args:
            kind: What is exchanged; each kind is counted separately.
            place: The group and its source.
            is_source: Whether this rank sends.
            value: What it sends.

        Returns:
            What the source has sent at the same point; None if that is unknown.
        """
        number = self._counts[kind, place]
        self._counts[kind, place] += 1
        name = hashlib.sha256(place.encode()).hexdigest()[:16]
        path = self._folder / f"{kind}.{name}.{number}"
        if is_source:
            data = _written(value)
            if data is not None and not path.exists():
                path.write_bytes(data)
            return value
        if not path.exists():
            return None
        # Written by this run's own script, in a private folder.
        return torch.load(path, weights_only=False) if kind == "tensor" else _read(path)

    def required(self, sent: Any, source: int) -> Any:
        """What a source has sent.

        Raises:
            MissingMessageError: It has not run before this rank.
        """
        if sent is None:
            raise MissingMessageError(
                f"the script waits for objects from rank {source}, which has not run before this "
                f"rank; include it in --ranks, before the ranks that wait for it"
            )
        return sent


def _written(value: Any) -> bytes | None:
    """The bytes of a value; None if it is too large to change what is traced."""
    if isinstance(value, torch.Tensor):
        if value.nbytes > _MAX_BYTES:
            return None
        buffer = io.BytesIO()
        torch.save(value.detach().cpu().clone(), buffer)
        return buffer.getvalue()
    return pickle.dumps(value)


def _read(path: Path) -> Any:
    return pickle.loads(path.read_bytes())  # noqa: S301 - see RankMessages
