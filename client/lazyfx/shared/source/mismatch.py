"""The error raised when source and graph differ."""

from __future__ import annotations


class SourceMismatchError(Exception):
    """Generated source does not match its graph: a bug in lazyfx or torch.fx."""

    def __init__(self, reason: str, node: str = "") -> None:
        at = f" at node {node!r}" if node else ""
        super().__init__(f"the generated source differs from its graph{at}: {reason}")
