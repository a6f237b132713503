"""Mutated graphs against the decoder and the server's checks.

    python tests/fuzz/fuzzing.py --cases 200000 --seed 1

Each case takes a graph of the golden files and mutates it: bytes changed, cut, duplicated or mixed
with those of another graph; or, at the message level, fields set, swapped, duplicated
or removed, which passes the first checks. It is then processed as a request and as a file:
envelope, canonical form, names, decoding. The outcome must be one of lazyfx's own
errors, or a graph that encodes to the same bytes.

A case also fails if it takes longer than `HANG_SECONDS` of CPU, or needs more than
`MEMORY_BYTES` beyond the memory of the process at its start.
"""

# ruff: noqa: T201 - a script that says what it did

from __future__ import annotations

import argparse
import collections
import json
import platform
import random
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google.protobuf
import torch
from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message
from torch.fx._lazy_graph_module import _LazyGraphModule

import lazyfx
from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.shared.format_version import check_envelope
from lazyfx.v1 import graph_pb2 as pb
from lazyfx_server.security.checked_graph import check
from lazyfx_server.settings.limits import GraphLimits

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
HANG_SECONDS = 20.0
MEMORY_BYTES = 2 * 2**30
MAX_NODES = 10_000

_NUMBERS = (0, 1, 2, 3, 5, 127, 128, 255, 2**16, 2**31 - 1, 2**32 - 1)
_SIGNED = (*_NUMBERS, -1, -2, 2**62, 2**63 - 1, -(2**63))
_FLOATS = (0.0, -0.0, 1.0, float("nan"), float("inf"), 1e308, 5e-324)
_TEXTS = (
    *("", "a", "x" * 2000, "os.system", "__class__", "aten::add.Tensor", "aten::relu", "cond"),
    *("torch.nn.functional.relu", "builtins.list", "builtins.eval", "view", "Conv2d", "Linear"),
    *("cuda:1", "# COUNTER: 0", "\r\n", "class", "a.b", "self", "n0", "\N{SNOWMAN}", "in_features"),
)


@dataclass
class Report:
    """What a run met."""

    cases: int = 0
    refused: int = 0
    accepted: int = 0
    reasons: collections.Counter[str] = field(default_factory=collections.Counter)
    slowest_seconds: float = 0.0
    slowest_bytes: int = 0
    failures: list[str] = field(default_factory=list)


def corpus() -> list[pb.Graph]:
    """The golden graphs."""
    return [pb.Graph.FromString(path.read_bytes()) for path in sorted(GOLDEN.glob("*/*.lazyfx"))]


class Mutator:
    """Mutates graphs, depending on a seed."""

    def __init__(self, seed: int, graphs: list[pb.Graph]) -> None:
        self.random = random.Random(seed)
        self._graphs = graphs

    def case(self) -> bytes:
        """A mutated graph message."""
        graph = pb.Graph()
        graph.CopyFrom(self.random.choice(self._graphs))
        way = self.random.random()
        if way < 0.3:
            graph.body = self._bytes(graph.body)
        elif way < 0.8:
            body = pb.GraphBody.FromString(graph.body)
            for _ in range(self.random.choice((1, 1, 1, 2, 4))):
                self._message(body)
            graph.body = body.SerializeToString(deterministic=True)
        elif way < 0.9:
            for _ in range(self.random.choice((1, 2))):
                self._message(graph.presentation)
        elif way < 0.95:
            self._message(graph)
        else:
            return self._bytes(graph.SerializeToString())
        return graph.SerializeToString()

    def _bytes(self, data: bytes) -> bytes:
        spoiled = bytearray(data)
        for _ in range(self.random.choice((1, 1, 2, 3, 8))):
            place = self.random.randrange(len(spoiled) + 1)
            way = self.random.randrange(7)
            if way == 0 and place < len(spoiled):
                spoiled[place] = self.random.randrange(256)
            elif way == 1 and place < len(spoiled):
                spoiled[place] ^= 1 << self.random.randrange(8)
            elif way == 2:
                del spoiled[place : place + self.random.choice((1, 2, 8, 64))]
            elif way == 3:
                spoiled[place:place] = self.random.randbytes(self.random.choice((1, 2, 9)))
            elif way == 4:
                piece = bytes(spoiled[place : place + self.random.choice((2, 16, 200))])
                spoiled[place:place] = piece * self.random.choice((1, 2, 20))
            elif way == 5:
                other = self.random.choice(self._graphs).body
                start = self.random.randrange(len(other))
                spoiled[place:] = other[start : start + len(data)]
            else:
                spoiled[place:place] = b"\xff" * self.random.choice((4, 9)) + b"\x01"
        return bytes(spoiled)

    def _message(self, message: Message) -> None:
        """Change one field somewhere in a message."""
        present = message.ListFields()
        # Down into a part, as long as there are parts, most of the time.
        parts = [
            part
            for descriptor, value in present
            if descriptor.message_type
            for part in (value if descriptor.is_repeated else [value])
        ]
        if parts and self.random.random() < 0.8:
            self._message(self.random.choice(parts))
            return
        if not message.DESCRIPTOR.fields:
            return
        descriptor = self.random.choice(message.DESCRIPTOR.fields)
        if present and self.random.random() < 0.7:
            descriptor = self.random.choice(present)[0]
        if descriptor.is_repeated:
            self._repeated(getattr(message, descriptor.name), descriptor)
        elif self.random.random() < 0.15:
            message.ClearField(descriptor.name)
        elif descriptor.message_type:
            getattr(message, descriptor.name).SetInParent()
        else:
            setattr(message, descriptor.name, self._value(descriptor))

    def _repeated(self, rows: Any, descriptor: Any) -> None:
        way = self.random.randrange(5)
        place = self.random.randrange(len(rows)) if rows else 0
        if way == 0 and rows:
            del rows[place]
        elif way == 1 and rows:
            other = self.random.randrange(len(rows))
            items = list(rows)
            items[place], items[other] = items[other], items[place]
            self._refill(rows, items, descriptor)
        elif way == 2 and rows:
            items = list(rows)
            items[place:place] = [items[place]] * self.random.choice((1, 1, 50))
            self._refill(rows, items, descriptor)
        elif descriptor.message_type:
            self._message(rows[place] if rows and way == 3 else rows.add())
        elif rows and way == 3:
            rows[place] = self._value(descriptor)
        else:
            rows.append(self._value(descriptor))

    @staticmethod
    def _refill(rows: Any, items: list[Any], descriptor: Any) -> None:
        if descriptor.message_type:
            items = [type(item).FromString(item.SerializeToString()) for item in items]
        del rows[:]
        rows.extend(items)

    def _value(self, descriptor: Any) -> Any:
        kinds: dict[int, Callable[[], Any]] = {
            descriptor.CPPTYPE_BOOL: lambda: self.random.random() < 0.5,
            descriptor.CPPTYPE_DOUBLE: lambda: self.random.choice(_FLOATS),
            descriptor.CPPTYPE_UINT32: lambda: self.random.choice(_NUMBERS),
            descriptor.CPPTYPE_UINT64: lambda: abs(self.random.choice(_NUMBERS)),
            descriptor.CPPTYPE_INT64: lambda: self.random.choice(_SIGNED),
            descriptor.CPPTYPE_ENUM: lambda: self.random.choice((*range(8), 60, 99)),
        }
        if descriptor.cpp_type == descriptor.CPPTYPE_STRING:
            text = self.random.choice(_TEXTS)
            return text.encode() if descriptor.type == descriptor.TYPE_BYTES else text
        return kinds[descriptor.cpp_type]()


def read(data: bytes) -> bool:
    """Process the bytes as a request and as a file; returns whether they were a graph.

    Raises:
        DecodeError: There was none. Nothing else may be raised.
        AssertionError: There was one, and it is not the one of the bytes.
    """
    graph = pb.Graph()
    try:
        graph.ParseFromString(data)
    except (ProtobufError, UnicodeDecodeError):
        return False  # gRPC and `load_graph` stop here
    check_envelope(graph)
    check(graph.body, limits=GraphLimits(max_nodes=MAX_NODES), presentation=graph.presentation,
          module_class=_LazyGraphModule)  # fmt: skip
    module = wire.decode(graph.body, graph.presentation, module_class=_LazyGraphModule)
    assert wire.encode(module).body == graph.body, "another graph was read"
    return True


def one(data: bytes, report: Report) -> None:
    """Run one case and record its outcome."""
    report.cases += 1
    began = time.process_time()
    try:
        if read(data):
            report.accepted += 1
        else:
            report.refused += 1
    except DecodeError as error:
        report.refused += 1
        report.reasons[error.field.partition("[")[0].partition(".")[0] or "whole"] += 1
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        where = traceback.format_exc().strip().splitlines()[-8:]
        report.failures.append(f"{type(error).__name__}: {error} {data.hex()}\n" + "\n".join(where))
    seconds = time.process_time() - began
    if seconds > report.slowest_seconds:
        report.slowest_seconds, report.slowest_bytes = seconds, len(data)
    if seconds > HANG_SECONDS:
        report.failures.append(f"{seconds:.0f} s for {len(data)} bytes: {data.hex()}")


def fuzz(cases: int, seed: int, most_failures: int = 20) -> Report:
    """Run cases."""
    graphs = corpus()
    mutator = Mutator(seed, graphs)
    report = Report()
    for graph in graphs:  # also fills the caches
        one(graph.SerializeToString(), report)
    assert report.accepted > len(graphs) // 2, report.failures
    assert not report.failures
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
    report = Report()
    while report.cases < cases and len(report.failures) < most_failures:
        one(mutator.case(), report)
    report.reasons["bytes of memory more"] = (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - used
    )
    return report


def main() -> None:
    """Read the command line, run, print one line of JSON; exit with 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = fuzz(options.cases, options.seed)
    for failure in report.failures:
        print(failure, file=sys.stderr)
    reasons = dict(report.reasons)
    memory = reasons.pop("bytes of memory more")
    print(json.dumps({
        "cases": report.cases, "seed": options.seed, "refused": report.refused,
        "accepted": report.accepted, "failures": len(report.failures), "fields": reasons,
        "slowest_seconds": round(report.slowest_seconds, 3),
        "slowest_bytes": report.slowest_bytes, "peak_growth_bytes": memory,
        "python": platform.python_version(), "torch": torch.__version__,
        "protobuf": google.protobuf.__version__, "lazyfx": lazyfx.__version__,
    }))  # fmt: skip
    sys.exit(bool(report.failures))


if __name__ == "__main__":
    main()
