"""A PassSpec is a value: later changes of its arguments do not affect it."""

from __future__ import annotations

import pytest
import torch
from torch.fx import symbolic_trace

import lazyfx
from lazyfx.errors import LazyfxError, UnsupportedGraphError


def added(a, b):
    return torch.add(a, b)


def multiplied(a, b):
    return torch.mul(a, b)


def test_a_pattern_that_changes_later_changes_no_spec(client):
    pattern, replacement = symbolic_trace(added), symbolic_trace(multiplied)
    spec = lazyfx.replace_pattern((pattern, replacement))
    module, (x, y) = symbolic_trace(added), torch.randn(2, 3)
    before = client.compile(module, [spec])
    call = next(n for n in replacement.graph.nodes if n.op == "call_function")
    call.target = torch.sub
    after = client.compile(module, [spec])
    assert (after.cache.status, after.key) == ("hit", before.key)
    assert torch.equal(after(x, y), x * y)
    recompiled = client.compile(module, [lazyfx.replace_pattern((pattern, replacement))])
    assert recompiled.key != before.key
    assert torch.equal(recompiled(x, y), x - y)


def test_options_that_change_later_change_no_spec():
    bounds = [1, 2]
    spec = lazyfx.pass_spec("some_pass", bounds=bounds)
    bounds.append(3)
    assert spec.options["bounds"] == (1, 2)
    assert spec.identity == lazyfx.pass_spec("some_pass", bounds=[1, 2]).identity


def test_equal_specs_make_equal_requests(client):
    module = symbolic_trace(multiplied)
    handles = [
        client.compile(module, [lazyfx.pass_spec("constant_fold", max_bytes=4096)])
        for _ in range(3)
    ]
    assert [handle.cache.status for handle in handles] == ["miss", "hit", "hit"]


def test_what_cannot_be_sent_is_refused_when_the_spec_is_made():
    graph = torch.fx.Graph()
    graph.output(graph.call_function(added, (graph.placeholder("a"),) * 2))
    pattern = torch.fx.GraphModule({}, graph)
    with pytest.raises(UnsupportedGraphError, match="added"):
        lazyfx.replace_pattern((pattern, symbolic_trace(multiplied)))
    with pytest.raises(LazyfxError, match="'where' has a set"):
        lazyfx.pass_spec("some_pass", where={1})


def test_passes_are_spelled_as_text_too(client):
    module = symbolic_trace(added)
    options = lazyfx.pass_spec("constant_fold", max_bytes=4096)
    listed = client.compile(module, ["dead_code_elimination", options])
    text = client.compile(module, "dead_code_elimination,constant_fold{max_bytes=4096}")
    alone = client.compile(module, lazyfx.pass_spec("dead_code_elimination"))
    assert (text.key, text.cache.status) == (listed.key, "hit")
    assert alone.key == client.compile(module, "dead_code_elimination").key
    assert alone.key != text.key
    with pytest.raises(LazyfxError, match="constant_fold"):
        client.compile(module, "constant_fold{max_bytes")


def test_a_pair_may_be_a_list():
    spec = lazyfx.replace_pattern([added, multiplied])
    assert spec.identity == lazyfx.replace_pattern((added, multiplied)).identity
    for wrong in ([added], [(added, multiplied)] * 2, (1, 2), 3):
        with pytest.raises(LazyfxError, match="takes pairs"):
            lazyfx.replace_pattern(wrong)
