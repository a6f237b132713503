"""The private names of torch that lazy modules depend on, in one place.

Present and unchanged from torch 2.11 to 2.13. A test imports this file and checks the behaviour of
each name, so it detects a torch that moves one.
"""

from torch.fx import _lazy_graph_module as torch_lazy

from lazyfx.shared.torch_lazy_class import LazyGraphModule as TorchLazyGraphModule

# Every GraphModule is the only instance of a class of this name, made by GraphModule.__new__.
SINGLETON_CLASS_NAME = "GraphModuleImpl"


def laziness_is_refused() -> bool:
    """Whether torch is in a region that needs eager modules (TorchScript backends)."""
    return bool(torch_lazy._force_skip_lazy_graph_module_flag)  # noqa: SLF001 - the point of this file


__all__ = ["SINGLETON_CLASS_NAME", "TorchLazyGraphModule", "laziness_is_refused", "torch_lazy"]
