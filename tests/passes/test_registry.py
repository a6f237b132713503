"""The registry describes its passes, makes them, and suggests names."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
from torch.fx import GraphModule

from lazyfx.shared.pass_spelling import parse
from lazyfx_server.passes import Pass, PassContext, PassError, PassResult, Registry
from lazyfx_server.passes.builtin import BUILTIN_PASSES

DOCS = Path(__file__).parents[2] / "docs" / "passes.md"


@dataclass(frozen=True)
class Sample(Pass):
    """Does nothing, with options.

    More about it.
    """

    name: ClassVar[str] = "sample"
    version: ClassVar[int] = 3
    needs_shapes: ClassVar[bool] = True

    flag: bool = field(default=False, metadata={"help": "A switch."})
    count: int = 1
    rate: float = 0.5
    label: str = "a"
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count must not be negative")

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        return PassResult(module, False)


def test_the_built_in_passes() -> None:
    names = Registry().names()
    assert list(names) == sorted(p.name for p in BUILTIN_PASSES)
    assert {
        "common_subexpression_elimination",
        "constant_fold",
        "dead_code_elimination",
        "decompose",
        "fuse_attention",
        "fuse_conv_bn",
        "normalize_arguments",
        "remove_dropout",
        "replace_pattern",
        "shape_propagation",
        "split_module",
    } <= set(names)


def test_descriptions() -> None:
    (described,) = Registry([Sample]).describe()
    assert described.name == "sample"
    assert described.summary == "Does nothing, with options."
    assert (described.version, described.needs_values, described.needs_shapes) == (3, False, True)
    assert [(o.name, o.type, o.default_value, o.summary) for o in described.options] == [
        ("flag", "bool", "False", "A switch."),
        ("count", "int", "1", ""),
        ("rate", "float", "0.5", ""),
        ("label", "str", "'a'", ""),
        ("names", "list", "()", ""),
    ]


def test_every_built_in_pass_says_what_it_does() -> None:
    for described in Registry().describe():
        assert described.summary.endswith(".")
        assert all(option.summary.endswith(".") for option in described.options)


def test_options_become_fields() -> None:
    made = Registry([Sample]).create("sample", {"flag": True, "rate": 2, "names": ["a", "b"]})
    assert made == Sample(flag=True, rate=2.0, names=("a", "b"))


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"cuont": 1}, "cuont", "did you mean 'count'?"),
        ({"zzz": 1}, "zzz", "known names: flag, count, rate, label, names"),
        ({"count": True}, "count", "takes int, not True"),
        ({"count": 1.0}, "count", "takes int"),
        ({"flag": 1}, "flag", "takes bool"),
        ({"rate": "fast"}, "rate", "takes float"),
        ({"names": "ab"}, "names", "takes list"),
        ({"names": [1]}, "names", "takes str"),
        ({"count": -1}, "", "count must not be negative"),
    ],
)
def test_bad_options(options: dict[str, object], option: str, message: str) -> None:
    with pytest.raises(PassError) as caught:
        Registry([Sample]).create("sample", options)
    assert message in caught.value.message
    assert caught.value.field == (f"options.{option}" if option else "options")
    assert caught.value.kind == "invalid"
    assert caught.value.pass_name == "sample"


def test_unknown_passes() -> None:
    with pytest.raises(PassError, match="did you mean 'dead_code_elimination'") as caught:
        Registry().create("dead_code_eliminaton")
    assert caught.value.field == "name"


def test_two_passes_of_one_name_are_a_mistake() -> None:
    @dataclass(frozen=True)
    class Other(Sample):
        """Another."""

    with pytest.raises(ValueError, match="two passes are named 'sample'"):
        Registry([Sample, Other])


def test_every_pass_and_option_is_documented_with_an_example() -> None:
    text = DOCS.read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    assert sorted(sections) == sorted(p.name for p in BUILTIN_PASSES)
    for described in Registry().describe():
        section = sections[described.name]
        options = re.findall(
            r"^\| `(\w+)` \| (\w+) \| `([^`]+)` \| (.+) \|$", section, re.MULTILINE
        )
        assert [tuple(row) for row in options] == [
            (o.name, o.type, o.default_value, o.summary) for o in described.options
        ]
        assert "```python" in section


def test_spellings_in_the_documentation_are_valid() -> None:
    registry = Registry()
    spellings = re.findall(r"`([a-z_]+\{[^`]+\})`", DOCS.read_text())
    assert spellings
    for spelling in spellings:
        for name, options in parse(spelling):
            registry.create(name, options)
