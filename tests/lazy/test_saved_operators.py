"""Saved graphs of every operator of torch's own table compute what they computed."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from elsewhere import Elsewhere
from torch.fx import GraphModule

from conformance.captures import captured
from conformance.cases import operators
from conformance.comparing import unlike
from lazyfx.errors import LazyfxError
from lazyfx.shared import wire

pytest.importorskip("expecttest", reason="torch's table of operators needs it")

# A sample for CI: these places of the table.
_EVERY = 40
_WAYS = ("make_fx", "export", "dynamo")


def _through_the_wire(module: GraphModule) -> GraphModule | None:
    """As a client rebuilds it; None for what the format refuses."""
    try:
        encoded = wire.encode(module)
    except LazyfxError:
        return None

    def bind(graph: int, attribute: int, _row: Any) -> torch.Tensor:
        return encoded.attributes[graph][attribute]  # type: ignore[return-value]

    def convention(root: torch.fx.Graph) -> None:
        root.set_codegen(copy.copy(module.graph._codegen))

    return wire.decode(encoded.body, encoded.presentation, bind=bind, on_root=convention)


def _repeats_itself(module: GraphModule, tensors: list[Any]) -> bool:
    """Whether two calls with one seed give the same: fresh memory that nothing fills does not."""
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(copy.deepcopy(module)(*copy.deepcopy(tensors)))
    return not unlike(*results)


def save_all(
    folder: Path, ways: tuple[str, ...], start: int, step: int
) -> tuple[Elsewhere, list[str]]:
    """Save graphs of operators; and why others cannot be saved."""
    saved, refused = Elsewhere(folder), []
    for case, call in ((c, call) for c in operators(start, step) for call in c.calls()):
        name = case.name.removeprefix("op ")
        for way in ways:
            capture = captured(way, call)
            if capture is None:
                continue
            rebuilt, tensors = _through_the_wire(capture.module), capture.inputs
            try:
                repeats = rebuilt is not None and _repeats_itself(rebuilt, tensors)
            except Exception:  # noqa: BLE001 - then it has no value to compare with
                continue
            if not repeats:
                continue
            try:
                saved.add(f"{name}-{way}", rebuilt, tuple(tensors))
            except LazyfxError as error:
                refused.append(f"{name}-{way}: {error}")
    return saved, refused


def test_a_sample_of_operators(tmp_path: Path) -> None:
    saved, refused = save_all(tmp_path, _WAYS, 3, _EVERY)
    assert (saved.differences(), refused) == ({}, [])
    assert len(list(tmp_path.glob("*.pickle"))) > 12


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", os.environ.get("LAZYFX_CAPTURES", " ".join(_WAYS)).split())
def test_every_operator(tmp_path: Path, way: str) -> None:
    saved, refused = save_all(tmp_path, (way,), 0, 1)
    assert (saved.differences(timeout=1800), refused) == ({}, [])
    assert len(list(tmp_path.glob("*.pickle"))) > 400
