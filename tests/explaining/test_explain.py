"""`lazyfx.explain` names the node and the field, in words and in a picture."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import captures
import models
import pytest
import torch
from graphs import LazyModule, call
from making import Choices, edit, make
from material import DISGUISED, PLAIN
from test_false_hits import DIFFERENT
from torch import nn
from torch.fx import GraphModule, Node, symbolic_trace
from typer.testing import CliRunner

import lazyfx
from lazyfx.cli.application import app
from lazyfx.errors import DecodeError
from lazyfx.shared import wire


@pytest.fixture(scope="module")
def gpt2() -> GraphModule:
    (capture,) = captures.exported(*models.gpt2(layers=1))
    return capture.module


def changed(module: GraphModule, change: Callable[[dict[str, Node]], object]) -> GraphModule:
    twin = copy.deepcopy(module)
    change({node.name: node for node in twin.graph.nodes})
    return twin


def only(explanation: lazyfx.Explanation) -> lazyfx.Difference:
    (difference,) = explanation.differences
    return difference


def test_a_graph_is_the_same_as_its_copy(gpt2: GraphModule) -> None:
    found = lazyfx.explain(gpt2, copy.deepcopy(gpt2))
    assert found.same
    assert found.differences == found.renamed == ()
    assert "one computation" in str(found)
    assert found.digests == (lazyfx.digest(gpt2),) * 2


def test_names_that_differ_are_reported_and_do_not_matter(gpt2: GraphModule) -> None:
    renamed = changed(gpt2, lambda nodes: nodes["add"]._rename("mine"))
    found = lazyfx.explain(gpt2, renamed)
    assert found.same
    assert found.renamed == (("add", "mine"),)
    assert "add = mine" in str(found)
    assert "without effect" in str(found)


def test_a_changed_literal_is_found_in_a_large_graph(gpt2: GraphModule) -> None:
    def change(nodes: dict[str, Node]) -> None:
        node = next(n for n in nodes.values() if n.target is torch.ops.aten.layer_norm.default)
        node.args = (*node.args[:4], 2e-5, *node.args[5:])

    found = lazyfx.explain(gpt2, changed(gpt2, change))
    difference = only(found)
    assert (difference.kind, difference.field) == ("changed", "args[4]")
    assert difference.first == difference.second == "layer_norm"
    assert difference.before == "1e-05 (float)"
    assert difference.after == "2e-05 (float)"
    assert "layer_norm: args[4]: 1e-05 (float) -> 2e-05 (float)" in str(found)


def test_an_inserted_and_an_erased_node_are_named(gpt2: GraphModule) -> None:
    def insert(nodes: dict[str, Node]) -> None:
        node = nodes["add"]
        with node.graph.inserting_after(node):
            new = node.graph.call_function(torch.ops.aten.neg.default, (node,), name="extra")
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)

    more = changed(gpt2, insert)
    added = [d for d in lazyfx.explain(gpt2, more).differences if d.kind == "added"]
    assert [d.second for d in added] == ["extra"]
    found = lazyfx.explain(more, gpt2)
    removed = [d for d in found.differences if d.kind == "removed"]
    assert [(d.first, d.second) for d in removed] == [("extra", None)]
    assert "- extra = call_function aten::neg.default(%add)" in str(found)
    # Nodes that now read another node are marked; those behind them are not.
    readers = {d.second for d in found.differences if d.kind == "changed"}
    assert readers == {user.name for user in more_users(more)}


def more_users(module: GraphModule) -> list[Node]:
    return list(next(n for n in module.graph.nodes if n.name == "extra").users)


def test_another_batch_size_is_one_line(gpt2: GraphModule) -> None:
    model, example = models.gpt2(layers=1)
    example = {name: torch.cat([tensor, tensor]) for name, tensor in example.items()}
    (capture,) = captures.exported(model, example)
    found = lazyfx.explain(gpt2, capture.module)
    assert not found.same
    line = next(line for line in str(found).splitlines() if "value.shape: [2, 8, 32]" in line)
    assert "[4, 8, 32]" in line
    assert "more nodes" in line


def test_a_symbolic_range_is_shown() -> None:
    def ranged(most: int) -> GraphModule:
        batch = torch.export.Dim("batch", min=2, max=most)
        program = torch.export.export(
            nn.ReLU(), (torch.ones(3, 4),), dynamic_shapes={"input": {0: batch}}
        )
        return program.module(check_guards=False)

    found = lazyfx.explain(ranged(100), ranged(200))
    assert {d.field for d in found.differences} >= {"value.shape[0]"}
    assert "in 2..100, example 3" in str(found)
    assert "in 2..200, example 3" in str(found)


def test_a_difference_inside_of_a_nested_graph_is_named() -> None:
    def branching(number: int) -> GraphModule:
        class Branches(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.cond(x.sum() > 0, lambda x: x + number, lambda x: x.sin(), (x,))

        return torch.export.export(Branches(), (torch.ones(3),)).module(check_guards=False)

    difference = only(lazyfx.explain(branching(1), branching(2)))
    assert difference.graph == "true_graph_0"
    assert (difference.before, difference.after) == ("1 (int)", "2 (int)")


@pytest.mark.parametrize("name", DIFFERENT)
def test_every_pair_that_has_two_digests_has_a_reason(name: str) -> None:
    found = lazyfx.explain(*(make() for make in DIFFERENT[name]))
    assert found.differences
    assert all(difference.field != "body" for difference in found.differences)


def test_random_graphs_differ_if_and_only_if_their_digests_do() -> None:
    differing = 0
    for i in range(150):
        data = hashlib.shake_128(str(i).encode()).digest(98)
        module, other = make(data[:90], PLAIN), make(data[:90], PLAIN)
        assert lazyfx.explain(module, make(data[:90], DISGUISED)).same
        edit(other, Choices(data[90:]), PLAIN)
        found = lazyfx.explain(module, other)
        assert found.same == (lazyfx.digest(module) == lazyfx.digest(other))
        if not found.same:
            differing += 1
            assert found.differences
            assert all(difference.field != "body" for difference in found.differences)
            ET.fromstring(found.picture())
    assert differing > 50


def test_the_picture_shows_what_differs(gpt2: GraphModule) -> None:
    other = changed(gpt2, lambda nodes: setattr(nodes["add"], "target", torch.ops.aten.sub.Tensor))
    picture = lazyfx.explain(gpt2, other).picture()
    text = " ".join(ET.fromstring(picture).itertext())
    assert "aten::add.Tensor → aten::sub.Tensor" in text
    assert "equal nodes" in text
    assert picture._repr_svg_() == picture
    assert len(picture) < 20_000


def test_a_picture_of_two_unlike_graphs_is_bounded(gpt2: GraphModule) -> None:
    (resnet,) = captures.symbolic(*models.resnet50())
    picture = lazyfx.explain(gpt2, resnet.module).picture()
    assert "more rows" in picture
    ET.fromstring(picture)


def test_long_graphs_are_compared_in_reasonable_time() -> None:
    def chain(place: int) -> GraphModule:
        graph = torch.fx.Graph()
        node = graph.placeholder("x")
        for i in range(5_000):
            node = graph.call_function(torch.add, (node, 1.5 if i == place else 1.0))
        graph.output(node)
        return LazyModule(nn.Module(), graph)

    assert len(lazyfx.explain(chain(7), chain(4_000)).differences) == 2


def test_what_explain_takes(tmp_path: Path, gpt2: GraphModule) -> None:
    path = tmp_path / "graph.lazyfx"
    saved = lazyfx.save_graph(gpt2, path)
    forms: list[Any] = [gpt2, wire.encode(gpt2), saved, path, str(path), lazyfx.load_graph(path)]
    assert all(lazyfx.explain(gpt2, form).same for form in forms)
    program = torch.export.export(nn.ReLU(), (torch.ones(2),))
    assert lazyfx.explain(program, program).same


def test_a_saved_graph_is_small_and_comes_back(tmp_path: Path, gpt2: GraphModule) -> None:
    path = tmp_path / "graph.lazyfx"
    saved = lazyfx.save_graph(gpt2, path)
    assert path.stat().st_size < 20_000
    loaded = lazyfx.load_graph(path)
    assert loaded.digest == saved.digest == lazyfx.digest(gpt2)
    names = [node.name for node in loaded.graph_module().graph.nodes]
    assert names == [node.name for node in gpt2.graph.nodes]


def test_an_invalid_saved_graph_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "graph.lazyfx"
    path.write_bytes(b"\xff\xff garbage")
    with pytest.raises(DecodeError, match="not a lazyfx graph file"):
        lazyfx.load_graph(path)
    lazyfx.save_graph(symbolic_trace(nn.ReLU()), path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DecodeError):
        lazyfx.load_graph(path)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_the_command(tmp_path: Path) -> None:
    first, second, picture = (tmp_path / name for name in ("a.lazyfx", "b.lazyfx", "d.svg"))
    lazyfx.save_graph(call("x", 1), first)
    lazyfx.save_graph(call("x", 1.0), second)
    same = run(first, first)
    assert same.exit_code == 0
    assert "one computation" in same.stdout
    differs = run(first, second, "--picture", picture)
    assert differs.exit_code == 1
    assert "add_tensor: args[1]: 1 (int) -> 1.0 (float)" in differs.stdout
    assert ET.fromstring(picture.read_text()).tag.endswith("svg")
    explanation = json.loads(run(first, second, "--json").stdout)
    assert explanation["same"] is False
    assert explanation["differences"][0]["field"] == "args[1]"
    missing = run(first, tmp_path / "nowhere.lazyfx")
    assert missing.exit_code == 2
    assert "nowhere.lazyfx" in missing.stderr
    assert not isinstance(missing.exception, (OSError, lazyfx.LazyfxError))
