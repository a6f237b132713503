"""What each rank of a warmed job did, as the process that ran it reports it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, Literal

Outcome = Literal["compiled", "known", "captured", "local"]

_RESULT: Final = "rank.json"


@dataclass(frozen=True)
class RankGraph:
    """One graph that a rank passed to the backend.

    Attributes:
        recorded: File name of its recording, which identifies the graph, its passes, settings and
            states; empty if it could not be recorded.
        digest: Hex digest of the graph; empty if it could not be encoded.
        nodes: Number of its nodes.
        outcome: The server compiled it ("compiled") or had it already ("known"); it was only
            captured, or the job will compile it locally.
        reason: Why it is compiled locally.
        place: The function of the script in which it begins, such as "train.py:31 in forward".
        places: For each node by name: the line of the script that it comes from.
    """

    recorded: str
    digest: str
    nodes: int
    outcome: Outcome
    reason: str = ""
    place: str = ""
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class GraphBreak:
    """A place where dynamo ended a graph.

    Attributes:
        reason: The first line of dynamo's reason.
        place: The line of the script.
        depends_on_data: Which code runs next depends on the values in a tensor.
    """

    reason: str
    place: str
    depends_on_data: bool


@dataclass(frozen=True)
class RankRun:
    """What one rank did.

    Attributes:
        rank: Its number.
        graphs: Its graphs, in the order in which they were captured.
        breaks: Its graph breaks.
        steps: Optimizer steps that it took.
        problem: Why the script failed; empty if it did not.
    """

    rank: int
    graphs: tuple[RankGraph, ...] = ()
    breaks: tuple[GraphBreak, ...] = ()
    steps: int = 0
    problem: str = ""

    def write(self, folder: Path) -> None:
        """Write it to a folder of its own."""
        (folder / _RESULT).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RankRun:
        """Read what a rank has written.

        Raises:
            FileNotFoundError: It ended before it wrote anything.
        """
        found = json.loads((folder / _RESULT).read_text(encoding="utf-8"))
        graphs = tuple(RankGraph(**graph) for graph in found.pop("graphs"))
        breaks = tuple(GraphBreak(**each) for each in found.pop("breaks"))
        return cls(graphs=graphs, breaks=breaks, **found)
