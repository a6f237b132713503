"""Saved graphs of real architectures compute what they computed, in a process with torch alone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from elsewhere import Elsewhere, unlike

import zoo
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from zoo.captures import WAYS, Capture
from zoo.check import decode_bound

SAMPLE = [("gpt2", "dynamo"), ("bert", "aot"), ("resnet", "export")]


def rebuilt(capture: Capture) -> torch.fx.GraphModule:
    """As a client builds it of graph data, with the convention by which it is called."""
    encoded = wire.encode(capture.module)
    codegen = capture.module.graph._codegen
    return decode_bound(encoded, on_root=lambda root: root.set_codegen(copy.copy(codegen)))


def repeats_itself(module: torch.fx.GraphModule, capture: Capture) -> bool:
    """Whether two calls with one seed are alike; graphs that fill memory with nothing are not."""
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        given = copy.deepcopy((capture.args, dict(capture.kwargs)))
        results.append(copy.deepcopy(module)(*given[0], **given[1]))
    return not unlike(*results)


def differences(name: str, way: str, folder: Path) -> dict[str, str]:
    try:
        captured = WAYS[way](*zoo.ARCHITECTURES[name].build())
    except Exception as error:  # noqa: BLE001 - captures raise errors of every kind
        pytest.skip(f"torch captures no graph: {type(error).__name__}")
    saved, refused = Elsewhere(folder), {}
    for number, capture in enumerate(captured):
        module = rebuilt(capture)
        if not repeats_itself(module, capture):
            continue
        try:
            with torch.no_grad():
                saved.add(f"{way}-{number}", module, capture.args, dict(capture.kwargs))
        except UnsupportedGraphError as error:
            refused[f"{way}-{number}"] = str(error)
    return {**refused, **saved.differences(timeout=600)}


@pytest.mark.parametrize(("name", "way"), SAMPLE)
def test_a_sample_of_architectures(tmp_path: Path, name: str, way: str) -> None:
    assert differences(name, way, tmp_path) == {}
    assert list(tmp_path.glob("*.pickle.out"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", list(zoo.ARCHITECTURES))
def test_every_architecture(tmp_path: Path, name: str, way: str) -> None:
    assert differences(name, way, tmp_path) == {}
