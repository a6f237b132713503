from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfx.errors import LazyfxError
from lazyfx.shared.pass_spelling import SpellingError, parse, spell

_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
_scalars = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
_values = _scalars | st.lists(_scalars, max_size=3).map(tuple)
_pipelines = st.lists(st.tuples(_names, st.dictionaries(_names, _values, max_size=3)), max_size=4)


def _exactly(value: object) -> object:
    return tuple(map(_exactly, value)) if isinstance(value, tuple) else (type(value), repr(value))


def _plain(passes: list) -> list:
    return [(name, {k: _exactly(v) for k, v in options.items()}) for name, options in passes]


@given(_pipelines)
def test_a_spelling_parses_to_the_pipeline_it_was_made_of(pipeline: list) -> None:
    assert _plain(parse(spell(pipeline))) == _plain(pipeline)


def test_spaces_and_plain_names() -> None:
    assert _plain(parse(' a , b { x = 1 , y = [ 1.5 , "z,}" ] } ')) == _plain(
        [("a", {}), ("b", {"x": 1, "y": (1.5, "z,}")})]
    )
    assert parse("  ") == []
    assert spell([("a", {}), ("b", {"x": True})]) == "a,b{x=true}"
    assert math.isnan(parse("a{x=nan}")[0][1]["x"])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,", "a pass name before character 3"),
        ("a b", "',' or the end before character 3"),
        ("a{x}", "'=' before character 4"),
        ("a{x=1", "',' or '}' before character 6"),
        ("a{x=1,x=2}", "each option once, not 'x' again"),
        ("a{x=fast}", "a double-quoted string, not 'fast'"),
        ("a{x=null}", "not 'null'"),
        ('a{x="\\q"}', "a double-quoted string"),
        ("a{x=[1}", "',' or ']'"),
        ("a{x=}", "a value"),
        ("1a", "a pass name before character 1"),
    ],
)
def test_other_text_is_refused_with_its_place(text: str, expected: str) -> None:
    with pytest.raises(SpellingError) as caught:
        parse(text)
    assert expected in str(caught.value)


def test_an_option_of_another_type_has_no_spelling() -> None:
    with pytest.raises(LazyfxError, match="has a dict"):
        spell([("a", {"x": {}})])  # type: ignore[arg-type]
