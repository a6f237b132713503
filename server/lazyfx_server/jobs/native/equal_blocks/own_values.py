"""What this job itself knows of a graph's values: computed from its inputs, on fake tensors."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch.fx import GraphModule, Node

from lazyfx_server.jobs.native.equal_blocks.forms import Facts, UnknownValueError, facts_of
from lazyfx_server.jobs.native.torch_inductor_codegen import fresh_fake_mode
from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.fake_run import UNKNOWN, FakeRun


def own_facts(module: GraphModule) -> Facts | None:
    """The facts of all values that can be computed; None if the graph changes torch's state.

    Autocast, for example, changes what equal calls do, and with them the values that they return.
    """
    # A mode of its own: the compile's keeps its symbols, its guards and its inputs.
    run = _Run(module, fresh_fake_mode())
    facts = {}
    with run.active():
        for node in module.graph.nodes:
            if node.op == "output":
                break
            if effects_of(node).state:
                if not _leaves_autocast_off(node):
                    return None
                run.give(node, UNKNOWN)
                continue
            value = run.compute(node)
            if value is not UNKNOWN:
                # At once: a later call may change the strides of a value in place.
                with suppress(UnknownValueError):
                    facts[node] = facts_of(value)
    return facts


class _Run(FakeRun):
    """Knows of inputs only what was recorded."""

    def known(self, node: Node) -> Any:
        return super().known(node) if node.op == "placeholder" else UNKNOWN


def _leaves_autocast_off(node: Node) -> bool:
    """Whether a call only enters or leaves a region without autocast, as rotary embeddings do."""
    name = getattr(node.target, "__name__", "")
    if name == "_exit_autocast":
        entered = node.args[0] if len(node.args) == 1 else None
        return isinstance(entered, Node) and _leaves_autocast_off(entered)
    return name == "_enter_autocast" and len(node.args) > 2 and node.args[2] is False
