"""A program: compare what jobs write that are forked before and after Inductor is prepared.

Prints a line for each state of torch: its name, the number of C++ kernels, and "same" or what
differs. Kernels are not compiled.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

import torch
from torch.fx import symbolic_trace
from torch.nn import functional

from lazyfx_server.jobs.native.ahead import inductor_preload  # noqa: F401 - as jobs have it
from lazyfx_server.jobs.native.toolchain.torch_inductor_kernels import omitting_kernels
from lazyfx_server.jobs.native.torch_inductor_codegen import (
    compile_ahead,
    fresh_fake_mode,
    observing_sources,
)

Sources = dict[str, list[str]]


def numbers(
    i: torch.Tensor, x: torch.Tensor, w: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers become floats: of the default dtype, which torch looks up when it is asked."""
    return torch.sin(i) + i / 3, torch.sqrt(i * i) * x.sum(), torch.full((4,), 2.5) + 1


def layers(i: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor]:
    """Has some of what the prepared graph has."""
    y = functional.dropout(functional.gelu(functional.layer_norm(x @ w, (8,))), 0.2)
    return (functional.cross_entropy(y, i.clamp(0, 7).flatten()[:8]),)


@contextlib.contextmanager
def state(name: str) -> Iterator[None]:
    """This state of torch, in a process that ends with it."""
    with contextlib.ExitStack() as held:
        if name == "float64":
            torch.set_default_dtype(torch.float64)
        elif name == "autocast":
            held.enter_context(torch.autocast("cpu", torch.bfloat16))
        yield


STATES: dict[str, Callable[..., tuple[torch.Tensor, ...]]] = {
    "float64": numbers,
    "autocast": layers,
}


def job(name: str) -> Sources:
    """The sources that Inductor writes."""
    cpp: list[str] = []
    python: list[str] = []
    with tempfile.TemporaryDirectory() as folder, state(name):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        mode = fresh_fake_mode()
        ids = torch.zeros(8, 8, dtype=torch.int64)
        values = [ids, torch.zeros(8, 8, requires_grad=True), torch.zeros(8, 8)]
        fakes = [mode.from_tensor(value, static_shapes=True) for value in values]
        module = symbolic_trace(STATES[name])
        inputs = (node for node in module.graph.nodes if node.op == "placeholder")
        for node, fake in zip(inputs, fakes, strict=True):
            node.meta["example_value"] = fake
        with omitting_kernels(), observing_sources(cpp.append, python.append):
            patches = {"compile_threads": 1, "cpp.vec_isa_ok": True}
            assert compile_ahead(module, fakes, mode, patches) is not None
    return {"cpp": sorted(cpp), "python": [source.replace(folder, "") for source in python]}


def forked(name: str) -> Sources:
    """The same in a fork of this process."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            with os.fdopen(writing, "w") as file:
                json.dump(job(name), file)
        finally:
            sys.stderr.flush()
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        written = file.read()
    os.waitpid(pid, 0)
    found: Sources = json.loads(written or "{}")
    return found


def main() -> None:
    """Compare all states."""
    before = {name: forked(name) for name in STATES}
    from lazyfx_server.jobs.native.ahead import prepared_inductor  # noqa: F401 - prepares

    for name, expected in before.items():
        written = forked(name)
        kinds = [kind for kind in expected if expected[kind] != written.get(kind)]
        kernels = str(expected).count("cpp_fused")
        sys.stdout.write(f"{name} {kernels} {kinds or 'same'}\n")


if __name__ == "__main__":
    main()
