"""Loads saved modules with torch alone, and calls each twice.

    python -I loader.py [MODULE ...] < FILES > ANSWERS

This is a program without lazyfx: importing it fails here. It reads a line for each file, with the
seconds that it may take and its path, and writes a line when `PATH.out` is written: what the two
calls gave, or the error as text. Each file is loaded by a fork of its own, so that nothing that one
imports helps the next. The modules are imported at the start: what the function that reads the
files imports itself, which takes seconds.

The inputs of the calls are in `NAME.inputs`, as written by `torch.save`: positional and keyword
arguments. A Python file is bound to the state in `NAME.state`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import pickle
import signal
import sys
from typing import Any

import torch
from torch.utils import _pytree as pytree


class Hidden:
    """Hides the packages of lazyfx from imports."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Refuse them."""
        if name.split(".")[0] in ("lazyfx", "lazyfx_server", "conformance"):
            raise ImportError(name + " is hidden")


def load(path: pathlib.Path) -> Any:
    """What is in a file, by its suffix, as docs/coverage.md says."""
    name = str(path)
    if path.suffix == ".pickle":
        return pickle.loads(path.read_bytes())  # noqa: S301 - written a moment ago
    if path.suffix == ".package":
        return torch.package.PackageImporter(name).load_pickle("module", "module.pkl")
    if path.suffix == ".ts":
        return torch.jit.load(name)
    if path.suffix == ".pt2":
        return torch.export.load(name).module()
    spec = importlib.util.spec_from_file_location(path.stem, path)
    program: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    return program.Module(torch.load(path.with_suffix(".state"), weights_only=True))


def called(path: pathlib.Path) -> dict[str, Any]:
    """What two calls of it gave; of a GraphModule also its code, and the names of its state."""
    module = load(path)
    results = []
    for seed in range(2):
        args, kwargs = torch.load(path.with_suffix(".inputs"), weights_only=False)
        torch.manual_seed(seed)
        # TorchScript takes the graph's inputs, positionally.
        call = (pytree.tree_leaves((args, kwargs)), {}) if path.suffix == ".ts" else (args, kwargs)
        results.append((module(*call[0], **call[1]), args, kwargs))
    found: dict[str, Any] = {"calls": results}
    if isinstance(module, torch.fx.GraphModule):
        found.update(code=module.code, state=list(module.state_dict()))
    return found


def answer(path: pathlib.Path) -> None:
    """Write `PATH.out`."""
    try:
        with torch.no_grad():
            found: Any = called(path)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        found = f"{type(error).__name__}: {error}"
    # Views of one memory as two dtypes cannot be saved together.
    torch.save(pytree.tree_map_only(torch.Tensor, torch.clone, found), f"{path}.out")
    assert not any(name.startswith("lazyfx") for name in sys.modules)


def main() -> None:
    """Answer line by line."""
    for line in sys.stdin:
        seconds, _, name = line.rstrip("\n").partition(" ")
        child = os.fork()
        if not child:
            signal.alarm(int(seconds))
            os.dup2(2, 1)  # what a module prints is no answer
            try:
                answer(pathlib.Path(name))
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        said = "written" if status == 0 else f"ended with status {status}"
        sys.stdout.write(said + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.meta_path.insert(0, Hidden())  # type: ignore[arg-type]
    torch.set_num_threads(1)
    # Uninitialized memory is filled, so that it can be compared.
    torch.use_deterministic_algorithms(True, warn_only=True)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    main()
