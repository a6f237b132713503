"""Pipelines have one spelling, which reads back as it was written."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest
from torch.fx import GraphModule

from lazyfx.shared.pass_spelling import parse
from lazyfx_server.passes import Pass, PassContext, PassError, PassResult, Registry
from lazyfx_server.passes.option_spelling import changed_options, spell_pipeline


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
    assert spell_pipeline([Sample(rate=-0.0)]) == "sample{rate=-0.0}"


def test_a_spelling_reads_back() -> None:
    sample = Sample(label="x,}", names=("a", "b"), count=7)
    assert parse(spell_pipeline([sample])) == [("sample", changed_options(sample))]


HOSTILE: tuple[object, ...] = (
    *("", "a b", "x;y", "$(id)", "/etc/passwd", "-flag", "a\nb", "\u202e", "x" * 1_000_000),
    *(10**30, -(10**30), float("nan"), float("inf"), None, b"x", {"a": 1}, print),
    *(["a b"], ["x"] * 20_000, [["x"]], [None]),
)


@pytest.mark.parametrize("name", Registry().names())
def test_an_option_takes_values_of_its_type_and_nothing_else(name: str) -> None:
    registry = Registry()
    for option in fields(registry._passes[name]):
        for value in HOSTILE:
            with pytest.raises(PassError) as refused:
                registry.create(name, {option.name: value})
            assert refused.value.field == f"options.{option.name}"
            assert len(str(refused.value)) < 600


@pytest.mark.parametrize("name", [v for v in HOSTILE if isinstance(v, str)])
def test_an_invalid_name_is_not_looked_up(name: str) -> None:
    """Not even for a suggestion: that takes seconds for a long name."""
    with pytest.raises(PassError, match="it must be a name of letters") as refused:
        Registry().create(name)
    assert len(str(refused.value)) < 300
    with pytest.raises(PassError, match="it must be a name of letters") as refused:
        Registry().create("constant_fold", {name: 1})
    assert len(str(refused.value)) < 300
