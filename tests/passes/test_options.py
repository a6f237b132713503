"""Pipelines have one spelling, which reads back as it was written."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import GraphModule

from lazyfx.spelling import parse
from lazyfx_server.passes import Pass, PassContext, PassResult
from lazyfx_server.passes.options import changed_options, spell_pipeline


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
