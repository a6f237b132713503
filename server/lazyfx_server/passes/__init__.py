"""Passes over fx graphs: the interface, the registry, and the pipeline that runs them."""

from lazyfx_server.passes.base import Pass, PassContext, PassResult, Rewrites
from lazyfx_server.passes.driver import Driver, PassRun
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.pipeline import Pipeline, PipelineOutcome, UntilStable
from lazyfx_server.passes.registry import OptionDescription, PassDescription, Registry
from lazyfx_server.settings.limits import PassLimits

__all__ = [
    "Driver",
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
    "UntilStable",
]
