"""torch's min-cut partitioner: its private names, in one place.

Present and unchanged from torch 2.11 to 2.13. A test imports this file and runs it.
"""

from __future__ import annotations

from torch.fx import GraphModule


def partition(
    joint: GraphModule, num_outputs: int, memory_budget: float
) -> tuple[GraphModule, GraphModule]:
    """Partitions a joint graph into forward and backward so that the fewest bytes are saved.

    Args:
        joint: Placeholders are named primals_<i> and tangents_<i>; every call has
            `meta["val"]`. Outputs: those of the forward, then gradients. Changed in place.
        num_outputs: Number of outputs of the forward graph.
        memory_budget: 0 to 1: the fraction of the activations that may be saved; below 1 more is
            recomputed.
    """
    # Imported here: these import dynamo and Inductor, which the server itself never uses.
    from torch._functorch import config
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    with config.patch(activation_memory_budget=memory_budget):
        return min_cut_rematerialization_partition(joint, None, num_fwd_outputs=num_outputs)
