"""Real models in every capture, made once."""

from __future__ import annotations

from functools import cache

import models
import pytest
from torch import Tensor, nn
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
    "resnet-symbolic",
    "resnet-export",
    "resnet-dynamo",
    "resnet-forward",
    "resnet-backward",
)


WAYS = {
    "symbolic": captures.symbolic,
    "export": captures.exported,
    "dynamo": captures.dynamo,
    "forward": captures.aot,
    "backward": captures.aot,
}


@cache
def _model(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    found: tuple[nn.Module, dict[str, Tensor]] = getattr(models, name)()
    return found


class _Captured(dict[str, Capture]):
    def __missing__(self, key: str) -> Capture:
        name, _, kind = key.partition("-")
        for capture in reversed(WAYS[kind](*_model(name))):
            self[f"{name}-{capture.label.rstrip('0123456789')}"] = capture
        assert key in self, "this way gives no such graph"
        return self[key]


@pytest.fixture(scope="session")
def captured() -> dict[str, Capture]:
    """Captures by "<model>-<kind>", each made when it is asked for; copy a module to change it."""
    return _Captured()


@pytest.fixture(params=KINDS)
def capture(request: pytest.FixtureRequest, captured: dict[str, Capture]) -> Capture:
    """Each capture in turn."""
    return captured[request.param]
