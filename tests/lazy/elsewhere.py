"""Saved modules, loaded and called twice by one process that has torch alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nursery
import torch
from torch import nn
from torch.fx import GraphModule

from conformance.comparing import unlike
from lazyfx.shared.formats.pickling import package_module, pickle_module

KINDS = {"pickle": pickle_module, "package": package_module}

# -I keeps the current folder and user packages out; the finder refuses our own packages.
_LOADER = """
import sys, pickle, pathlib, torch
from torch.utils._pytree import tree_map_only

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lazyfx", "lazyfx_server"):
            raise ImportError(name + " is hidden")

sys.meta_path.insert(0, Hidden())
torch.set_num_threads(1)

def load(path):
    if path.suffix == ".pickle":
        return pickle.loads(path.read_bytes())
    return torch.package.PackageImporter(str(path)).load_pickle("module", "module.pkl")

def called(path):
    module = load(path)
    assert isinstance(module, torch.fx.GraphModule)
    results = []
    for seed in range(2):
        args, kwargs = torch.load(path.with_suffix(".inputs"), weights_only=False)
        torch.manual_seed(seed)
        result = module(*args, **kwargs)
        results.append((result, args, kwargs))
    return {"calls": results, "code": module.code, "state": dict(module.state_dict())}

for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    if path.suffix in (".pickle", ".package"):
        try:
            found = called(path)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        # Views of one memory as two dtypes cannot be saved together.
        torch.save(tree_map_only(torch.Tensor, torch.clone, found), str(path) + ".out")
assert not any(name.startswith("lazyfx") for name in sys.modules)
"""


@dataclass
class Elsewhere:
    """Collects modules, saved in each way, and tells what differs when they are loaded.

    Attributes:
        folder: Where they are saved.
    """

    folder: Path
    _expected: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        module: GraphModule,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        kinds: tuple[str, ...] = ("pickle", "package"),
        *,
        calls: nn.Module | None = None,
    ) -> None:
        """Save a module, and call a copy of it (or `calls`) twice for what it computes."""
        here = copy.deepcopy(module) if calls is None else calls
        self._expected[name] = {"code": module.code, "state": list(module.state_dict())}
        for kind in kinds:
            (self.folder / f"{name}.{kind}").write_bytes(KINDS[kind](module))
        torch.save((args, kwargs or {}), self.folder / f"{name}.inputs")
        results = []
        for seed in range(2):
            given = torch.load(self.folder / f"{name}.inputs", weights_only=False)
            torch.manual_seed(seed)
            results.append((here(*given[0], **given[1]), *given))
        self._expected[name]["calls"] = results

    def differences(self, timeout: float = 120) -> dict[str, str]:
        """What is not as expected, by the name of the file, after one process loaded all."""
        command = ["-I", "-W", "ignore", "-c", _LOADER, str(self.folder)]
        nursery.run("torch", command, check=True, timeout=timeout)
        found = {}
        for out in sorted(self.folder.glob("*.out")):
            file = out.name.removesuffix(".out")
            expected = self._expected[file.rpartition(".")[0]]
            reason = _difference(torch.load(out, weights_only=False), expected)
            if reason:
                found[file] = reason
        return found


def _difference(loaded: Any, expected: dict[str, Any]) -> str:
    if isinstance(loaded, str):
        return loaded
    if loaded["code"] != expected["code"]:
        return "another code"
    if list(loaded["state"]) != expected["state"]:
        return f"another state: {list(loaded['state'])}"
    for number, (one, other) in enumerate(zip(loaded["calls"], expected["calls"], strict=True)):
        if reason := unlike(one, other):
            return f"call {number + 1}: {reason}"
    return ""
