"""Runs jobs on the nodes of a Ray cluster.

Ray places one actor on each node and reports what died. The actor (`node_host`) holds executors of
its own, so a job still runs in a worker process of lazyfx, with its sandbox, its bounds and its own
end. Between server and actors is a process (`bridge_process`) that is Ray's driver: Ray ends its
driver when the head node has been gone for a minute, and that must not be the server. Only bytes,
numbers and JSON pass through Ray, never pickled objects of lazyfx.
"""

from lazyfx_server.execution.ray_engine.cluster_state import EngineStatus, Node
from lazyfx_server.execution.ray_engine.engine import RayEngine
from lazyfx_server.execution.ray_engine.node_host import NodePools, NodeRefused
from lazyfx_server.execution.ray_engine.ray_executor import RayExecutor

__all__ = ["EngineStatus", "Node", "NodePools", "NodeRefused", "RayEngine", "RayExecutor"]
