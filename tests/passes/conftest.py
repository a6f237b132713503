"""Real models in every capture, made once."""

from __future__ import annotations

import models
import pytest
from wire import captures
from wire.captures import Capture

# A graph of every kind that callers send.
KINDS = (
    "gpt2-export",
    "gpt2-dynamo",
    "gpt2-forward",
    "gpt2-backward",
    "bert-export",
    "bert-dynamo",
    "resnet50-symbolic",
    "resnet50-export",
    "resnet50-dynamo",
    "resnet50-forward",
    "resnet50-backward",
)


@pytest.fixture(scope="session")
def captured() -> dict[str, Capture]:
    """Captures by "<model>-<kind>"; copy a module before changing it."""
    found: dict[str, Capture] = {}
    for name in ("gpt2", "bert", "resnet50"):
        model, example = getattr(models, name)()
        made = [*captures.exported(model, example), *captures.dynamo(model, example)]
        if name != "bert":
            made += captures.aot(model, example)
        if name == "resnet50":
            made += captures.symbolic(model, example)
        for capture in made:
            found.setdefault(f"{name}-{capture.label.rstrip('0123456789')}", capture)
    return found


@pytest.fixture(params=KINDS)
def capture(request: pytest.FixtureRequest, captured: dict[str, Capture]) -> Capture:
    """Each capture in turn."""
    return captured[request.param]
