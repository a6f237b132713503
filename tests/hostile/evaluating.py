"""A program that has the passes evaluate wild calls, each operator in a process that may die.

It is started with the memory that malloc gives out filled with some byte. Two runs with different
bytes that tell different results have read what was not theirs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from hostile.wild_operators import Draw, graph_of, operators
from torch.fx import GraphModule

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassLimits, Registry
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.pass_requests import pipeline_of
from lazyfx_server.passes.verify import NumericVerifier
from lazyfx_server.security.checked_graph import check

# Read outside and written outside, without the review: the sweep must see these.
CONTROLS = ("control.reads", "control.crashes")
_SECONDS = 60
_MEMORY = 6 << 30
_LIMITS = PassLimits()
_REGISTRY = Registry()
_NAMED = NamedPipelines(_REGISTRY)
_OPERATORS = {str(operator): operator for operator in operators()}


def without_addresses(text: str) -> str:
    """A message without addresses."""
    return re.sub(r"0x[0-9a-f]+", "0x", text.partition(" While executing")[0])


def digest_of(tensors: Iterable[torch.Tensor]) -> str:
    """Of shapes, types and every byte."""
    found = hashlib.sha256()
    for tensor in tensors:
        plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
        found.update(f"{plain.dtype} {tuple(plain.shape)}".encode())
        if plain.numel() and plain.dtype not in _NOT_BYTES:
            found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


_NOT_BYTES = {torch.complex32}


def verified(module: GraphModule) -> str:
    """What a graph computes for verification, or why it does not."""
    verifier = NumericVerifier()
    try:
        verifier.start(module)
    except Exception as error:  # noqa: BLE001 - any refusal is one
        return f"refused: {without_addresses(str(error))}"
    return "ran " + digest_of(verifier._last.values())


def passed(module: GraphModule, name: str, *, verify: bool = False) -> str:
    """The tensors and the number of nodes that a pipeline leaves behind, or why it does not."""
    verifier = NumericVerifier() if verify else None
    try:
        if verifier is not None:
            verifier.start(module)
        pipeline = pipeline_of(_REGISTRY, _NAMED.expand([pb.PassSpec(name=name)]))
        outcome = pipeline.run(module, RecompileLedger(), _LIMITS).module
        if verifier is not None:
            verifier.check(outcome, _REGISTRY.create(name))
    except Exception as error:  # noqa: BLE001 - any refusal is one
        return f"refused: {without_addresses(str(error))}"
    held = [v for v in vars(outcome).values() if isinstance(v, torch.Tensor)]
    kept = [*held, *outcome.state_dict().values()]
    return f"{len(outcome.graph.nodes)} nodes, {len(kept)} constants {digest_of(kept)}"


Step = tuple[str, Callable[[], str]]


def steps(names: list[str], seed: int, count: int) -> Iterator[Step]:
    """What is done with some operators, by name; those after each other share their draws."""
    drawn: list[Draw] = []
    ran: list[Draw] = []
    for name in names:
        for number in range(count):
            draw = Draw(_OPERATORS[name], seed, number)
            try:
                module = graph_of([draw])
                check(wire.encode(module).body)
            except Exception:  # noqa: BLE001 - what cannot be sent is no attack
                continue
            drawn.append(draw)

            def single(module: GraphModule = module, draw: Draw = draw) -> str:
                found = verified(module)
                if found.startswith("ran"):
                    ran.append(draw)
                return found

            yield f"{name} verify {number}", single
    for title in ("constant_fold", "inference") if drawn else ():
        yield title, lambda title=title: passed(graph_of(drawn), title)
    for title in ("decompose", "functionalize"):
        yield from _halves(title, ran)


def _halves(title: str, draws: list[Draw]) -> Iterator[Step]:
    """A pass that is refused at one call is tried without that call."""
    if not draws:
        return
    refused: list[str] = []

    def together() -> str:
        found = passed(graph_of(draws), title, verify=True)
        refused[:] = [found] if found.startswith("refused") else []
        return found

    yield f"{title} of {len(draws)} from {draws[0].operator} {draws[0].number}", together
    if refused and len(draws) > 1:
        middle = len(draws) // 2
        yield from _halves(title, draws[:middle])
        yield from _halves(title, draws[middle:])


def control(name: str) -> Iterator[Step]:
    """As `steps`, of a call that was not reviewed."""
    outside = torch.ops.aten._reshape_alias
    reach = (4096, 1) if name == CONTROLS[0] else (2, 2**40)

    def reads() -> str:
        blocks = [torch.full((64,), 1.0) for _ in range(100)]
        held = blocks[50]
        del blocks
        return digest_of([outside(held, [reach[0]], [reach[1]]).clone()])

    yield "reads", reads


def in_child(names: list[str], seed: int, count: int, pipe: int) -> None:
    """Does all steps of some operators and tells of each before and after."""
    bounds = {resource.RLIMIT_CORE: 0, resource.RLIMIT_CPU: _SECONDS, resource.RLIMIT_AS: _MEMORY}
    for bound, value in bounds.items():
        resource.setrlimit(bound, (value, value))
    doing = control(names[0]) if names[0] in CONTROLS else steps(names, seed, count)
    with os.fdopen(pipe, "w") as out:
        for step, do in doing:
            print(json.dumps([step]), file=out, flush=True)
            print(json.dumps([step, do()]), file=out, flush=True)


def outcomes(names: list[str], seed: int, count: int) -> Iterator[dict[str, Any]]:
    """What the process of some operators reported, and how it ended; each by itself if it died."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        code = 1
        try:
            in_child(names, seed, count, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as lines:
        entries = [json.loads(line) for line in lines if line.endswith("\n")]
    _, status = os.waitpid(pid, 0)
    ended = os.waitstatus_to_exitcode(status)
    if ended and len(names) > 1:
        for name in names:
            yield from outcomes([name], seed, count)
        return
    yield {
        "operators": names,
        "ended": signal.Signals(-ended).name if ended < 0 else ended,
        "last": entries[-1][0] if entries else "",
        "outcomes": {entry[0]: entry[1] for entry in entries if len(entry) == 2},
    }


def main() -> None:
    """Reads lists of operators from standard input; writes lines of JSON."""
    seed, count = int(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    # What is imported late is imported once.
    for _, do in steps(["aten.add.Tensor"], seed, 4):
        do()
    for names in json.load(sys.stdin):
        for outcome in outcomes(names, seed, count):
            sys.stdout.write(json.dumps(outcome) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
