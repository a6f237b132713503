"""What is raised when source and graph differ."""

from __future__ import annotations


class SourceMismatchError(Exception):
    """Generated source says something else than its graph: a fault of ours or of torch.fx."""

    def __init__(self, reason: str, node: str = "") -> None:
        at = f" at node {node!r}" if node else ""
        super().__init__(f"the generated source differs from its graph{at}: {reason}")
