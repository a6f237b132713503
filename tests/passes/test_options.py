"""Pipelines have one spelling, which reads back as it was written."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.fx import GraphModule

from lazyfx_server.passes import Pass, PassContext, PassError, PassResult, parse_spelling
from lazyfx_server.passes.options import changed_options, spell_pass, spell_pipeline, spell_value


@dataclass(frozen=True)
class Sample(Pass):
    """A pass with an option of every type."""

    name: ClassVar[str] = "sample"

    flag: bool = False
    count: int = 1
    rate: float = 1.0
    label: str = "a"
    names: tuple[str, ...] = field(default=())

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        return PassResult(module, False)


scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
)
values = st.one_of(scalars, st.lists(scalars, max_size=4).map(tuple))
names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,12}", fullmatch=True)
pipelines = st.lists(st.tuples(names, st.dictionaries(names, values, max_size=3)), max_size=4)


@given(pipelines)
def test_a_spelling_reads_back(pipeline: list[tuple[str, dict[str, object]]]) -> None:
    text = ",".join(spell_pass(name, options) for name, options in pipeline)
    read = parse_spelling(text)
    assert read == pipeline
    assert all(
        type(a) is type(b)
        for (_, one), (_, other) in zip(read, pipeline, strict=True)
        for a, b in ((one[k], other[k]) for k in one)
    )
    assert ",".join(spell_pass(name, options) for name, options in read) == text


def test_only_what_differs_is_spelled_in_one_order() -> None:
    assert spell_pipeline([Sample()]) == "sample"
    assert (
        spell_pipeline([Sample(rate=2.0, count=3), Sample()]) == "sample{count=3,rate=2.0},sample"
    )
    assert spell_pipeline([Sample(label='x"y', names=("a", "b"), flag=True)]) == (
        'sample{flag=true,label="x\\"y",names=["a","b"]}'
    )


def test_types_count() -> None:
    assert changed_options(Sample(count=True)) == {"count": True}
    assert spell_value(-0.0) == "-0.0"
    (_, options) = parse_spelling("p{x=nan}")[0]
    assert isinstance(options["x"], float)
    assert math.isnan(options["x"])


def test_space_is_free() -> None:
    assert parse_spelling(" a , b { x = [ 1 , 2 ] , y = true } ") == [
        ("a", {}),
        ("b", {"x": (1, 2), "y": True}),
    ]
    assert parse_spelling("  ") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,", "a pass name at character 3"),
        ("a b", "',' or the end"),
        ("a{x}", "'='"),
        ("a{x=1", "',' or '}'"),
        ("a{x=1,x=2}", "not 'x' again"),
        ("a{x=y}", "a quoted string"),
        ("a{x=[1}", "',' or ']'"),
        ("a{x=[[1]]}", "a value"),
        ("{", "a pass name"),
    ],
)
def test_errors_say_where(text: str, message: str) -> None:
    with pytest.raises(PassError) as caught:
        parse_spelling(text)
    assert message in caught.value.message
    assert caught.value.field == "passes"
