"""One rank of a job that trains with DDP over gloo; run by torchrun. Writes what it saw."""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel
from training.loops import Net, batches, block, train

import lazyfx


def break_graph(*_: object) -> None:
    """Make two graphs of one."""
    torch._dynamo.graph_break()


def exchange(_: object, __: object, y: torch.Tensor) -> torch.Tensor:
    """Collectives inside of the graph, forward and backward, that change nothing."""
    group = dist.group.WORLD
    gathered = funcol.all_gather_tensor_autograd(y, 0, group)
    return funcol.reduce_scatter_tensor_autograd(gathered, "sum", 0, group) / dist.get_world_size()


def whole(gradient: torch.Tensor | None) -> torch.Tensor:
    """A gradient, which may be spread over the ranks."""
    assert gradient is not None
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def wrapped(net: torch.nn.Module, wrapper: str) -> torch.nn.Module:
    if wrapper == "ddp":
        return DistributedDataParallel(net)
    if wrapper == "broken":
        net.norm.register_forward_hook(break_graph)
        return DistributedDataParallel(net)
    if wrapper == "collective":
        net.norm.register_forward_hook(exchange)
        return net
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if wrapper == "tensor_parallel":
        return parallelize_module(net, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    fully_shard(net.first, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    rank = int(os.environ["RANK"])
    uneven = options.pop("uneven", False)
    lost = options.pop("lost_rank", None)
    if rank == lost:
        options["address"] = "127.0.0.1:1"
    dist.init_process_group("gloo")
    width = options.pop("width")
    net = block(width) if options.get("wrap") == "tensor_parallel" else Net(width=width)
    if uneven and rank == 1:
        net.last = torch.nn.Linear(net.last.in_features, 4, bias=False)
    model = net if uneven else wrapped(net, options.pop("wrap", "ddp"))
    compiled = torch.compile(model, backend="lazyfx", options=options)
    done = train(model, batches(), compiled)
    report = lazyfx.backend_report()
    summary = {
        "losses": [float(loss) for loss in done.losses],
        "outcomes": [graph.outcome for graph in report.graphs],
        "digests": [graph.digest for graph in report.graphs],
        "caches": [graph.cache for graph in report.graphs],
        "reasons": [graph.reason for graph in report.graphs],
        "divergence": [graph.divergence for graph in report.graphs],
        "gradients": [whole(p.grad).tolist() for p in model.parameters()],
    }
    (folder / f"rank{rank}.json").write_text(json.dumps(summary))
    dist.barrier()
    # First what DDP keeps of the group: were that the last of it, the group would be taken down
    # by a thread that holds the interpreter's lock, and that may wait for one that needs it.
    del model, compiled, net, done
    torch._dynamo.reset()
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
