"""One rank's first training step in its own process; prints its times as JSON.

Each rank represents a node: it has its own cache folder and shares nothing with the others.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

_LITERALS = ("eps", "variance_epsilon")


def main() -> None:
    """Train one step, configured by the first argument, a JSON object."""
    wanted = json.loads(sys.argv[1])
    started = time.perf_counter(), _cpu()
    import torch

    sys.path.append(str(Path(__file__).parents[1] / "tests"))
    import models

    torch.set_num_threads(1)
    model, example = getattr(models, wanted["model"])(layers=wanted["layers"], width=64)
    if wanted.get("epsilon"):
        _change_literal(model, wanted["epsilon"])
    optimizer = torch.optim.SGD(model.train().parameters(), lr=1e-3)
    torch.manual_seed(0)
    ready = time.perf_counter(), _cpu()
    mega = Path(wanted["mega"]) if wanted.get("mega") else None
    if mega is not None and not wanted.get("saves"):
        torch.compiler.load_cache_artifacts(mega.read_bytes())
    compiled = torch.compile(model, backend=wanted["backend"], options=wanted.get("options"))
    outputs = compiled(**example)
    loss = outputs[0].float().square().mean()
    loss.backward()
    optimizer.step()
    done = time.perf_counter(), _cpu()
    if wanted.get("saves"):
        artifacts = torch.compiler.save_cache_artifacts()
        assert artifacts is not None
        # All ranks have the same; the last one stays.
        own = Path(wanted["mega"]).with_suffix(f".{os.getpid()}")
        own.write_bytes(artifacts[0])
        own.replace(wanted["mega"])
    told = {
        "loss": float(loss.detach()),
        "seconds": done[0] - ready[0],
        "cpu": done[1] - ready[1],
        "import_cpu": ready[1] - started[1],
    }
    if wanted["backend"] == "lazyfx":
        import lazyfx

        report = lazyfx.backend_report()
        assert report.remote == len(report.graphs), str(report)
    sys.stdout.write(json.dumps(told) + "\n")


def _change_literal(model: Any, epsilon: float) -> None:
    """Give all normalizations another epsilon, a literal of their graphs."""
    places = [(part, name) for part in model.modules() for name in _LITERALS if hasattr(part, name)]
    assert places, "the model has no epsilon"
    for part, name in places:
        setattr(part, name, epsilon)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
