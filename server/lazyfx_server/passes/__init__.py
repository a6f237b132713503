"""Passes over fx graphs: the contract, the registry, the pipeline that runs them."""

from lazyfx_server.passes.base import Pass, PassContext, PassLimits, PassResult, Rewrites
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.pipeline import PassRun, Pipeline, PipelineOutcome
from lazyfx_server.passes.registry import OptionDescription, PassDescription, Registry

__all__ = [
    "OptionDescription",
    "Pass",
    "PassContext",
    "PassDescription",
    "PassError",
    "PassLimits",
    "PassResult",
    "PassRun",
    "Pipeline",
    "PipelineOutcome",
    "Registry",
    "Rewrites",
]
