"""The backend of a rank that is warmed: records each graph, and has the server compile it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from torch._dynamo import register_backend
from torch.fx import GraphModule, Node

from lazyfx.backend import backend_report, compile_graph
from lazyfx.backend.options import BackendOptions, read_options
from lazyfx.backend.planning.plans import make_plan
from lazyfx.backend.recording import record
from lazyfx.backend.remote import Runnable
from lazyfx.errors import LazyfxError
from lazyfx.warming.rank_runs import GraphBreak, RankGraph
from lazyfx.warming.torch_fake_groups import graph_break_reasons

BACKEND: Final = "lazyfx"
# What a stack trace says of each frame; the last one is the line of the script.
_FRAME: Final = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')
# What dynamo calls a branch whose condition is not known.
_BRANCH: Final = "generic_jump"
_ON_DATA: Final = re.compile(
    r"data[- ]dependent|\.item\(\)|\.tolist\(\)|dynamic shape", re.IGNORECASE
)


class RankCapture:
    """Collects the graphs of the script that runs in this process.

    Args:
        folder: Receives the recordings.
        has_server: Whether the server compiles the graphs; they are only captured otherwise.
    """

    def __init__(self, folder: Path, *, has_server: bool) -> None:
        self._folder = folder
        self._has_server = has_server
        self.graphs: list[RankGraph] = []

    def install(self) -> None:
        """Become the backend "lazyfx" of this process."""

        def compile_for_rank(
            module: GraphModule, example_inputs: Sequence[Any], **given: Any
        ) -> Runnable:
            return self.compile(module, example_inputs, **given)

        register_backend(compile_for_rank, BACKEND)

    def breaks(self) -> tuple[GraphBreak, ...]:
        """The graph breaks of this process so far, each place once."""
        found: dict[GraphBreak, None] = {}
        for each in graph_break_reasons:
            stack = each.user_stack
            place = (
                f"{Path(stack[-1].filename).name}:{stack[-1].lineno} in {stack[-1].name}"
                if stack
                else ""
            )
            reason = next(iter(each.reason.strip().splitlines()), "")
            is_branch = reason.startswith(_BRANCH)
            if is_branch:
                reason = "a branch on values"
            on_data = is_branch or bool(_ON_DATA.search(each.reason))
            found[GraphBreak(reason, place, on_data)] = None
        return tuple(found)

    def compile(
        self,
        module: GraphModule,
        example_inputs: Sequence[Any],
        *,
        mode: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Runnable:
        """Take one graph, as `lazyfx.backend.compile_graph` does.

        The rank runs what the server has compiled, as the job will: what one graph returns decides
        what the next one is given.
        """
        forced = {"wait": True, "on_error": "eager", "priority": "prewarm"}
        given = {**(options or {}), **forced, "record": str(self._folder)}
        if self._has_server:
            return self._compile(module, example_inputs, mode, given)
        return self._only_capture(module, example_inputs, read_options(given, mode))

    def _compile(
        self,
        module: GraphModule,
        example_inputs: Sequence[Any],
        mode: str | None,
        options: Mapping[str, Any],
    ) -> Runnable:
        places = _places(module.graph.nodes)  # before it is compiled, which may change it
        call = compile_graph(module, example_inputs, mode=mode, options=options)
        report = backend_report().graphs[-1]
        is_remote = report.outcome == "remote"
        self.graphs.append(
            RankGraph(
                recorded=report.recorded,
                digest=report.digest,
                nodes=report.nodes,
                outcome=("compiled" if report.compiled else "known") if is_remote else "local",
                reason=report.reason,
                place=next(iter(places.values()), ""),
                places=places,
            )
        )
        return call

    def _only_capture(
        self, module: GraphModule, example_inputs: Sequence[Any], options: BackendOptions
    ) -> Runnable:
        places = _places(module.graph.nodes)
        recorded = digest = reason = ""
        try:
            requests = make_plan(module, example_inputs, options).requests
            # AOTAutograd's graphs may take the place of dynamo's; the first one, the forward, is
            # what is compared with those of other ranks.
            names = [record(request, self._folder).name for request in requests]
            if requests:
                recorded, digest = names[0], requests[0].digest()
        except LazyfxError as error:
            reason = str(error)
        self.graphs.append(
            RankGraph(
                recorded=recorded,
                digest=digest,
                nodes=len(module.graph.nodes),
                outcome="local" if reason else "captured",
                reason=reason,
                place=next(iter(places.values()), ""),
                places=places,
            )
        )
        return module.forward


def _places(nodes: Iterable[Node]) -> dict[str, str]:
    """Where nodes come from: "train.py:31 in forward: y = x * rank"."""
    found = {}
    for node in nodes:
        lines = str(node.meta.get("stack_trace") or "").strip().splitlines()
        frames = [(i, match) for i, line in enumerate(lines) if (match := _FRAME.search(line))]
        if frames:
            number, frame = frames[-1]
            code = lines[number + 1].strip() if number + 1 < len(lines) else ""
            place = f"{Path(frame['file']).name}:{frame['line']} in {frame['function']}"
            found[node.name] = f"{place}: {code}" if code else place
    return found
