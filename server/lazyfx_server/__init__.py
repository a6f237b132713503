"""The lazyfx server: applies passes to torch.fx graphs, lazily, and caches the results."""

__version__ = "0.1.0"
