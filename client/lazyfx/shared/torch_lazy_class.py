"""torch's own lazy GraphModule class, for modules whose source was generated elsewhere."""

from torch.fx._lazy_graph_module import _LazyGraphModule as LazyGraphModule

__all__ = ["LazyGraphModule"]
