"""Everything that lazyfx asks of Ray; the only file that imports it, in the bridge process only."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lazyfx_server.execution.ray_engine.node_host import NodeHost

LOCAL: Final = "local"
RESOURCE: Final = "lazyfx"
"""The custom resource of nodes that run jobs: one unit for each server that may use the node."""

# Part of a GPU, so that Ray lets the node's processes see one, and servers can share it.
_GPU_SHARE: Final = 0.01
_OBJECT_STORE_BYTES: Final = 128 << 20
_MAX_REASON: Final = 500


class NodeGone(Exception):  # noqa: N818 - reads as what happened
    """The node, or lazyfx's actor there, has ended; the message says why."""


class NodeFailed(Exception):  # noqa: N818 - reads as what happened
    """A method of the actor raised, which is a bug in lazyfx; the actor works."""


class NodeHandle:
    """The actor of one node.

    Args:
        actor: Ray's handle of a NodeHost.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of NodeHost.

        Raises:
            NodeGone: There is no answer and will be none.
            NodeFailed: The method raised.
        """
        try:
            answer = getattr(self._actor, method).remote(*arguments)
            return await asyncio.wrap_future(answer.future())
        except RayTaskError as error:
            raise NodeFailed(f"lazyfx failed there: {_last_line(error)}") from error
        except RayActorError as error:
            raise NodeGone(_last_line(error)) from error
        except (RayError, ConnectionError, ValueError, TypeError) as error:
            raise NodeGone(f"Ray: {_last_line(error)}") from error

    def kill(self) -> None:
        """End it, with all processes that it has started."""
        try:
            ray.kill(self._actor)
        except (RayError, ConnectionError, ValueError):
            return  # it is gone


class RayCluster:
    """A connection to a cluster. Blocking; create it in the main thread, which must stay.

    The kernel ends the processes of a local cluster when the thread that started them ends.

    Args:
        address: "local" to start a cluster on this machine, or ray://HOST:PORT.

    Raises:
        ConnectionError: The cluster cannot be reached.
    """

    def __init__(self, address: str) -> None:
        try:
            if address == LOCAL:
                ray.init(
                    address="local",
                    num_cpus=0,
                    num_gpus=None,
                    resources={RESOURCE: 1},
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    object_store_memory=_OBJECT_STORE_BYTES,
                    log_to_driver=False,
                )
            else:
                ray.init(address, log_to_driver=False)
        except (RayError, RuntimeError, ValueError, OSError) as error:
            raise ConnectionError(_last_line(error)) from error

    def nodes(self) -> dict[str, tuple[str, bool]]:
        """Host name, and whether it has a GPU, of each live node with the resource, by id.

        Raises:
            ConnectionError: The head node does not answer.
        """
        try:
            found = ray.nodes()
        except (RayError, RuntimeError, ConnectionError) as error:
            raise ConnectionError(_last_line(error)) from error
        return {
            node["NodeID"]: (node["NodeManagerHostname"], node["Resources"].get("GPU", 0) > 0)
            for node in found
            if node["Alive"] and node["Resources"].get(RESOURCE, 0) >= 1
        }

    def start(self, node: str, with_gpu: bool, opener: str, config: bytes) -> NodeHandle:
        """Start the actor of a node; it ends with this connection.

        Raises:
            NodeGone: Ray cannot start it.
        """
        made = ray.remote(NodeHost).options(
            num_cpus=0,
            num_gpus=_GPU_SHARE if with_gpu else 0,
            resources={RESOURCE: 1},
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            max_restarts=0,
            max_concurrency=10_000,
        )
        try:
            return NodeHandle(made.remote(opener, config))
        except (RayError, ConnectionError, ValueError, TypeError) as error:
            raise NodeGone(f"Ray: {_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if isinstance(error, RayTaskError) and lines else " ".join(lines[:3])
    return (text or type(error).__name__)[:_MAX_REASON]
