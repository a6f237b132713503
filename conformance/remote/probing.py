"""A backend that asks the server for every graph, and notes what keeps graphs local."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule

import lazyfx
from lazyfx.backend import compile_graph
from lazyfx.backend.options import BackendOptions
from lazyfx.backend.planning.plans import make_plan
from lazyfx.backend.remote import GraphRequest
from lazyfx.backend.symbolic_floats import specialize_unsent
from lazyfx.capture import remembering
from lazyfx.shared import wire
from lazyfx.shared.native.text_tokens import TOKEN
from lazyfx.shared.native.torch_inductor import RestartAnalysis
from lazyfx.v1.graph_pb2 import GraphBody
from lazyfx_server.jobs.native.conditions import CannotCompile, fake_inputs
from lazyfx_server.jobs.native.tokenized_graph import without_texts
from lazyfx_server.jobs.native.torch_inductor_codegen import fresh_fake_mode


@dataclass
class Probe:
    """A backend for torch.compile.

    With `compile="eager"` the graph goes through the wire and a server's checks, and comes back to
    be run. What the native compile of the same graph would be refused for here, before anything is
    sent, counts too.

    Attributes:
        address: Address of the server.
        compile: "eager", or "inductor" to have each graph compiled natively.
        graphs: The reason why each graph stays local; "" if it is remote.
    """

    address: str
    compile: str = "eager"
    graphs: list[str] = field(default_factory=list)

    def __call__(self, module: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        """Compile one graph of dynamo's."""
        reason = self._refusal(module, inputs) if self.compile == "eager" else ""
        options = {"address": self.address, "compile": self.compile, "on_error": "eager"}
        call = compile_graph(module, inputs, options=options)
        self.graphs.append(reason or lazyfx.backend_report().graphs[-1].reason)
        return call

    def _refusal(self, module: GraphModule, inputs: Sequence[Any]) -> str:
        """Why no native compile of this graph would be requested."""
        specialize_unsent(module)
        try:
            plan = make_plan(module, inputs, BackendOptions(address=self.address))
        except RestartAnalysis:
            raise
        except Exception as error:  # noqa: BLE001 - the backend takes any error for a reason
            return f"{type(error).__name__}: {error}"
        return next(filter(None, map(_misses_a_text, plan.requests)), "")


def _misses_a_text(request: GraphRequest) -> str:
    """What fails because of a string that the compiler does not get; "" if nothing does."""
    body = GraphBody.FromString(remembering.encode(request.graph).body)
    try:
        module = wire.decode(without_texts(body))
        mode = fresh_fake_mode()
        given = fake_inputs(module, mode)
        with mode:
            module(*given)
    except Exception as error:  # noqa: BLE001 - torch raises errors of every kind
        text = f"{type(error).__name__}: {error}"
        return text if TOKEN.search(text) or isinstance(error, CannotCompile) else ""
    return ""
