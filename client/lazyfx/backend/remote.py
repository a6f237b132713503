"""Asking the server for one graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from lazyfx.backend.options import BackendOptions
from lazyfx.sync import Client


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server made, ready to run.

    Attributes:
        call: Takes the graph's inputs, returns its outputs.
        digest: Hex digest of the graph.
        cache: "hit", "miss" or "joined".
    """

    call: Callable[..., Any]
    digest: str
    cache: str


def ask(client: Client, module: GraphModule, options: BackendOptions) -> Answer:
    """Have one graph compiled.

    Args:
        client: Of the server.
        module: What dynamo captured.
        options: `passes`, `compile` and `timeout` apply.

    Raises:
        UnsupportedGraphError: The graph cannot go on the wire; names the node.
        ServiceError: The server refused, failed, or is not there.
    """
    remote = client.compile(module, options.passes, timeout=options.timeout)
    return Answer(remote.graph_module().forward, remote.digest, remote.cache.status)
