"""What is written around literals computes what calling the same functions computes."""

from __future__ import annotations

import math
import operator
import pickle
import random
import warnings
from typing import Any

import pytest
from torch.fx import Graph, GraphModule, Interpreter
from torch.fx.graph import magic_methods

from lazyfx.errors import DecodeError, LazyfxError
from lazyfx.shared import wire
from lazyfx.shared.formats.pickling import pickle_module
from lazyfx.shared.source import checked_generation
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.lazy.lazy_module import generate_source, lazy_class
from lazyfx_server.security.checked_graph import check

_NUMBERS: list[Any] = [
    0, 1, 2, -1, -2, -7, 3, True, False, 2**40, -(2**40), -(2**63),
    0.0, -0.0, 0.5, -0.5, -2.0, 1e300, -1e300, math.inf, -math.inf, math.nan,
    1j, -1j, 1 + 2j, -1 - 2j, complex(-0.0, 1.0), complex(-0.0, -1e-28), complex(0.0, -1.0),
    complex(0.0, -0.0), complex(-0.0, -0.0), complex(1.0, -0.0), complex(-2.0, 0.0),
]  # fmt: skip
_OTHERS: list[Any] = [(1, -2), [-1.0, 2], (), (-3,), slice(-1, None), {"a": -1}, None, ...]


def _graph(target: Any, *args: Any) -> GraphModule:
    graph = Graph()
    graph.placeholder("x")
    graph.output(graph.call_function(target, args))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Python, about parts of numbers
        return GraphModule({}, graph)


def _text(value: object) -> str:
    """Numbers by their text, which tells 0.0 from -0.0 and nan from others."""
    return f"{type(value).__name__} {value!r}"


def _outcome(work: Any) -> str:
    try:
        return _text(work())
    except Exception:  # noqa: BLE001 - what is called raises errors of every kind
        return "an error"


def _check(target: Any, *args: Any) -> bool:
    """Whether a graph was taken; if so, all its renderings compute what the call computes."""
    expected = _outcome(lambda: target(*args))
    body = wire.encode(_graph(target, *args)).body
    ledger = RecompileLedger()
    try:
        checked = check(body, module_class=lazy_class(ledger))
    except DecodeError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert refused.field
        return False
    assert wire.encode(checked.module).body == body
    generate_source(checked.module, ledger, "code")
    decoded = wire.decode(body)
    with checked_generation(decoded.graph):
        decoded.recompile()
    assert _outcome(lambda: Interpreter(decoded).run(None)) == expected
    assert _outcome(lambda: decoded(None)) == expected, decoded.code
    assert b"lazyfx" not in pickle_module(checked.module)
    return True


@pytest.mark.parametrize("base", [-2, -2.0, -math.inf, -0.0, -1j, complex(-0.0, -1e-28), -(2**63)])
@pytest.mark.parametrize("exponent", [2, 3, 0.5, -1])
def test_the_base_of_a_power_keeps_its_sign(base: Any, exponent: Any) -> None:
    assert _check(operator.pow, base, exponent)


@pytest.mark.parametrize("name", sorted(magic_methods))
def test_operators_around_literals(name: str) -> None:
    target = getattr(operator, name, None)
    if target is None:
        pytest.skip("torch.fx lists it, and Python has it no more")
    places = magic_methods[name].count("{}")
    draw = random.Random(name)
    values = [*_NUMBERS, *_OTHERS]
    for _ in range(40):
        args = [draw.choice(values) for _ in range(places)]
        if name in ("pow", "lshift", "mul"):
            args[-1] = draw.choice([0, 1, 2, 3, -1, 0.5, -0.5])
        try:
            _check(target, *args)
        except LazyfxError:
            continue  # what the format does not carry


@pytest.mark.parametrize("value", [n for n in _NUMBERS if isinstance(n, complex)])
def test_complex_numbers_keep_the_signs_of_zeros(value: complex) -> None:
    assert _check(operator.pos, value)
    assert _check(operator.mul, 1.0, value)


@pytest.mark.parametrize("value", [-2.0, -1j, complex(-0.0, -1e-28), complex(1.0, -0.0)])
@pytest.mark.parametrize("target", [operator.pow, operator.mul])
def test_a_pickle_computes_the_same(target: Any, value: Any) -> None:
    body = wire.encode(_graph(target, value, 2)).body
    loaded = pickle.loads(pickle_module(wire.decode(body)))
    assert _text(loaded(None)) == _text(target(value, 2))
