"""Bytes that are not a graph in canonical form: always our own error, with field and node."""

from __future__ import annotations

import random
from collections.abc import Callable

import captures
import models
import pytest
import sympy
import torch
from graphs import LazyModule, call
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2 as pb


@pytest.fixture(scope="module")
def bodies() -> list[bytes]:
    """Graphs that use every table: values, attributes, leaf modules, symbols, children."""

    class Branches(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x[1:] + 1, lambda x: x[1:].sin(), (x,))

    found = captures.symbolic(*models.resnet50())
    found += captures.exported(*models.gpt2(layers=1), dynamic=True)
    found += captures.dynamo(Branches(), {"x": torch.randn(4, 8)}, dynamic=True)
    return [wire.encode(capture.module).body for capture in found]


def test_garbage_is_refused_with_our_own_error() -> None:
    for garbage in (b"", b"\0", b"garbage", b"\x0a\xff\xff\xff\xff\xff", bytes(range(256)) * 9):
        with pytest.raises(DecodeError):
            wire.decode(garbage)


def test_every_shortened_message_is_refused(bodies: list[bytes]) -> None:
    for body in bodies:
        for length in range(0, len(body), max(1, len(body) // 60)):
            with pytest.raises(DecodeError):
                wire.check_canonical(body[:length])


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=250, deadline=None, derandomize=True)
def test_changed_bytes_decode_to_themselves_or_not_at_all(
    bodies_: list[bytes], seed: int, changes: int
) -> None:
    generator = random.Random(seed)
    body = bytearray(generator.choice(bodies_))
    for _ in range(changes):
        place = generator.randrange(len(body))
        action = generator.random()
        if action < 0.6:
            body[place] = generator.randrange(256)
        elif action < 0.8:
            del body[place]
        else:
            body.insert(place, generator.randrange(256))
    try:
        module = wire.decode(bytes(body), module_class=LazyModule)
    except DecodeError:
        return
    # What decodes is canonical: the graph that was made has these bytes and no others.
    assert wire.encode(module).body == bytes(body)


@pytest.fixture(scope="module")
def bodies_(bodies: list[bytes]) -> list[bytes]:
    return [body for body in bodies if len(body) < 10_000]


def edited(edit: Callable[[pb.GraphBody], object]) -> bytes:
    """A small good graph, spoiled."""
    module = call("x", [1, "x", "a"], torch.float32, target=torch.cat, dim=0, out=None)
    body = pb.GraphBody.FromString(wire.encode(module).body)
    wire.check_canonical(body.SerializeToString(deterministic=True))
    edit(body)
    return body.SerializeToString(deterministic=True)


EDITS: dict[str, tuple[Callable[[pb.GraphBody], object], str]] = {
    "no graph": (lambda b: b.ClearField("graphs"), "graphs"),
    "unused string": (lambda b: b.strings.append("unused"), "strings"),
    "doubled string": (lambda b: b.strings.append("a"), "strings"),
    "unused target": (lambda b: b.targets.add(kind=5, name="view"), "targets"),
    "unused device": (lambda b: b.devices.add(type=1), "devices"),
    "unused symbol": (lambda b: b.symbols.add(kind=1), "symbols"),
    "unused expression": (lambda b: b.expressions.add(operator=2), "expressions"),
    "unused graph": (lambda b: b.graphs.add().CopyFrom(b.graphs[0]), "graphs"),
    "unused attribute": (
        lambda b: b.graphs[0].attributes.add().literal.none.SetInParent(),
        "graphs[0].attributes",
    ),
    "calls swapped": (lambda b: b.graphs[0].calls.__setitem__(0, 1), "calls"),
    "call out of range": (lambda b: b.graphs[0].calls.__setitem__(1, 99), "graphs[0].calls"),
    "reference to itself": (
        lambda b: b.graphs[0].operands.__setitem__(0, 0),
        "graphs[0].operands",
    ),
    "reference before the first": (
        lambda b: b.graphs[0].operands.__setitem__(0, 2),
        "graphs[0].operands",
    ),
    "operands end early": (lambda b: b.graphs[0].operands.pop(), "graphs[0].operands"),
    "operands left": (lambda b: b.graphs[0].operands.append(1), "graphs[0].operands"),
    "no output": (lambda b: b.graphs[0].calls.pop(), "graphs[0]"),
    "values of zero": (lambda b: b.graphs[0].values.extend([0, 0, 0]), "graphs[0].values"),
    "too few values": (lambda b: b.graphs[0].values.extend([1]), "graphs[0].values"),
    "a value of the output": (lambda b: b.graphs[0].values.extend([0, 0, 1]), "graphs[0].values"),
    "keywords unsorted": (lambda b: b.calls[1].kwargs.reverse(), "strings"),
    "no target": (lambda b: b.calls[1].ClearField("target"), "calls[1].target"),
    "opcode unknown": (lambda b: setattr(b.calls[1], "opcode", 77), "calls[1]"),
    "argument without kind": (lambda b: b.calls[1].args.add(), "calls[1].args"),
    "literal placeholder kwargs": (
        lambda b: b.calls[0].kwargs.add(name=0).value.none.SetInParent(),
        "calls[0].args",
    ),
    "stars on a call": (lambda b: setattr(b.calls[1], "stars", 1), "calls[1].stars"),
    "two outputs": (lambda b: b.calls[2].args.add().none.SetInParent(), "calls[2].args"),
}


def test_what_is_remembered_of_a_call_is_remembered_of_these_words() -> None:
    """Rows of calls are known again by their bytes, which hold numbers of words and targets."""
    right = edited(lambda _: None)
    wire.check_canonical(right)
    body = pb.GraphBody.FromString(right)
    *others, dim, out = body.strings
    body.strings[:] = [*others, out, dim]
    with pytest.raises(DecodeError, match="not sorted"):
        wire.check_canonical(body.SerializeToString(deterministic=True))
    targets = [torch.ops.aten.sub.Tensor, torch.ops.aten.add.Tensor]
    for target in targets:
        decoded = wire.decode(wire.encode(call("x", 1, target=target, alpha=2)).body)
        assert [node.target for node in decoded.graph.nodes][1] is target
    for word in ("none", "tanh"):
        gelu = call("x", target=torch.ops.aten.gelu.default, approximate=word)
        decoded = wire.decode(wire.encode(gelu).body)
        assert [node.kwargs for node in decoded.graph.nodes][1] == {"approximate": word}
    for device in ("cpu", "meta"):
        made = call((2,), target=torch.ops.aten.zeros.default, device=torch.device(device))
        decoded = wire.decode(wire.encode(made).body)
        assert [node.kwargs for node in decoded.graph.nodes][1] == {"device": torch.device(device)}


@pytest.mark.parametrize("name", EDITS)
def test_a_spoiled_message_is_refused_by_field(name: str) -> None:
    edit, field = EDITS[name]
    with pytest.raises(DecodeError) as caught:
        wire.check_canonical(edited(edit))
    assert caught.value.field.startswith(field), caught.value


def test_the_error_names_the_node() -> None:
    with pytest.raises(DecodeError) as caught:
        wire.check_canonical(edited(lambda b: b.graphs[0].operands.__setitem__(0, 5)))
    assert caught.value.node == 1


def test_unknown_and_doubled_fields_are_refused() -> None:
    body = wire.encode(call("x", 1)).body
    for extra in (b"\xf8\x07\x01", body, b"\x0a\x00", b"\x52\x00"):
        with pytest.raises(DecodeError):
            wire.check_canonical(body + extra)


def test_a_target_outside_the_table_is_refused() -> None:
    for kind, name in [
        (pb.TARGET_KIND_FUNCTION, "os.system"),
        (pb.TARGET_KIND_FUNCTION, "builtins.eval"),
        (pb.TARGET_KIND_FUNCTION, "torch.load"),
        (pb.TARGET_KIND_OPERATOR, "aten::from_file.default"),
        (pb.TARGET_KIND_OPERATOR, "aten::__class__.default"),
        (pb.TARGET_KIND_OPERATOR, "nowhere::nothing.default"),
        (pb.TARGET_KIND_OPERATOR_PACKET, "aten::__dict__"),
        (pb.TARGET_KIND_HIGHER_ORDER_OPERATOR, "run_const_graph"),
    ]:
        body = pb.GraphBody.FromString(edited(lambda b: None))
        body.targets[0].kind, body.targets[0].name = kind, name
        with pytest.raises(DecodeError, match="not in the table"):
            wire.decode(body.SerializeToString(deterministic=True))


def test_getattr_reads_plain_attributes_only() -> None:
    body = wire.encode(call("x", "dtype", target=getattr)).body
    assert wire.decode(body) is not None
    for name in (b"__dic", b"_base", b"grad_"):
        with pytest.raises(DecodeError):
            wire.decode(body.replace(b"dtype", name))


@pytest.mark.parametrize(
    ("edit", "field"),
    [
        (lambda p: p.graphs[0].stems.__setitem__(0, "x = 1;"), "presentation.stems"),
        (lambda p: p.graphs[0].stems.__setitem__(0, "class"), "presentation.stems"),
        (lambda p: p.graphs[0].stems.__setitem__(0, "torch"), "presentation.stems"),
        (lambda p: p.graphs[0].stem.__setitem__(0, 9), "presentation.stem"),
        (lambda p: p.graphs[0].stem.__setitem__(1, 0), "presentation.stem"),
        (lambda p: p.graphs[0].stem.pop(), "presentation.stem"),
        (
            lambda p: p.graphs[0].placeholder_targets.add(node=0, target="x=print(1)"),
            "presentation.placeholder_targets",
        ),
        (
            lambda p: p.graphs[0].placeholder_targets.add(node=0, target="x\r"),
            "presentation.placeholder_targets",
        ),
        (lambda p: p.graphs.add(), "presentation.graphs"),
        (lambda p: p.device_indices.append(1), "presentation.device_indices"),
        (lambda p: p.graphs[0].attribute_paths.append("a"), "presentation.attribute_paths"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    edit: Callable[[pb.Presentation], object], field: str
) -> None:
    encoded = wire.encode(call("x", 1))
    edit(encoded.presentation)
    with pytest.raises(DecodeError) as caught:
        wire.decode(encoded.body, encoded.presentation)
    assert caught.value.field == field


@pytest.mark.parametrize("path", ['a"].b', "__class__", "forward", "graph", "a..b", "", "a\nb"])
def test_attribute_paths_that_reach_further_are_refused(path: str) -> None:
    (capture,) = captures.symbolic(torch.nn.Linear(2, 2), {"input": torch.ones(1, 2)})
    encoded = wire.encode(capture.module)
    encoded.presentation.graphs[0].attribute_paths[0] = path
    with pytest.raises(DecodeError) as caught:
        wire.decode(encoded.body, encoded.presentation)
    assert caught.value.field.endswith("attribute_paths")


def nested(depth: int) -> bytes:
    """An output whose argument is None within `depth` lists, written by hand."""

    def field(number: int, content: bytes) -> bytes:
        size, length = bytearray(), len(content)
        while length > 127:
            size.append(length & 127 | 128)
            length >>= 7
        return bytes([number << 3 | 2, *size, length]) + content

    argument = b"\x12\x00"
    for _ in range(depth):
        argument = field(7, field(1, argument))
    call = bytes([8, pb.OPCODE_OUTPUT]) + field(3, argument)
    return field(8, call) + field(9, field(1, b"\x00"))


def test_nesting_is_bounded() -> None:
    assert wire.decode(nested(20)) is not None
    for depth in (35, 70, 1000, 5000):
        with pytest.raises(DecodeError):
            wire.decode(nested(depth))


def test_numbers_out_of_a_symbolic_expression_are_bounded() -> None:
    body = pb.GraphBody()
    for integer in (10, 64):
        body.expressions.add(operator=pb.SYMBOLIC_OPERATOR_INTEGER, integer=integer)
    for number in range(8):
        body.expressions.add(
            operator=pb.SYMBOLIC_OPERATOR_POWER, operands=[number + 1 if number else 0, 1]
        )
    body.values.add(expression=len(body.expressions) - 1)
    body.calls.add(opcode=pb.OPCODE_PLACEHOLDER)
    body.calls.add(opcode=pb.OPCODE_OUTPUT).args.add().none.SetInParent()
    body.graphs.add(calls=[0, 1], values=[1, 0])
    with pytest.raises(DecodeError) as caught:
        wire.check_canonical(body.SerializeToString(deterministic=True))
    assert caught.value.field.startswith("expressions")


def test_two_devices_of_a_graph_cannot_be_one() -> None:
    devices = [torch.device("cuda", index) for index in (0, 1)]
    encoded = wire.encode(call("x", *devices))
    encoded.presentation.device_indices[:] = [3, 3]
    with pytest.raises(DecodeError) as caught:
        wire.decode(encoded.body, encoded.presentation)
    assert caught.value.field == "presentation.device_indices"


def test_a_constant_is_no_expression() -> None:
    encoded = wire.encode(call("x", 7))
    for rows in (
        [pb.SymbolicExpression(operator=pb.SYMBOLIC_OPERATOR_INTEGER, integer=7)],
        [pb.SymbolicExpression(operator=pb.SYMBOLIC_OPERATOR_TRUE)],
        [
            pb.SymbolicExpression(operator=pb.SYMBOLIC_OPERATOR_INTEGER, integer=3),
            pb.SymbolicExpression(operator=pb.SYMBOLIC_OPERATOR_IDENTITY, operands=[0]),
        ],
    ):
        body = pb.GraphBody.FromString(encoded.body)
        body.expressions.extend(rows)
        body.calls[1].args[1].expression = len(rows) - 1
        with pytest.raises(DecodeError, match="constants must be literals"):
            wire.check_canonical(body.SerializeToString(deterministic=True))
    # Symbols that cancel each other out are found out when torch adds them up.
    body = pb.GraphBody.FromString(encoded.body)
    body.symbols.add(kind=pb.SYMBOL_KIND_SIZE)
    body.expressions.add(operator=pb.SYMBOLIC_OPERATOR_SYMBOL, operands=[0])
    body.expressions.add(operator=pb.SYMBOLIC_OPERATOR_EQUAL, operands=[0, 0])
    body.calls[1].args[1].expression = 1
    with pytest.raises(DecodeError, match="constants must be literals"):
        wire.decode(body.SerializeToString(deterministic=True))


def test_a_symbolic_number_that_has_become_known_is_a_literal() -> None:
    env = ShapeEnv()
    seven = env.create_symintnode(sympy.Integer(7), hint=7)
    assert wire.digest(call("x", seven)) == wire.digest(call("x", 7))
