"""Named pipelines: a PassSpec with such a name stands for a list of passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from lazyfx.errors import LazyfxError
from lazyfx.shared.pass_specs import messages, normalize
from lazyfx.shared.pass_spelling import UNTIL_STABLE
from lazyfx.shared.printable import shown
from lazyfx.shared.suggesting import SHORT_NAMES, did_you_mean
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.pass_requests import pipeline_of
from lazyfx_server.passes.registry import Registry

BUILTIN_PIPELINES: Mapping[str, str] = MappingProxyType(
    {
        # Needs no values, and keeps results bit-identical whether or not shapes are known.
        "default": "remove_dropout,until_stable(no_op_elimination,"
        "common_subexpression_elimination,dead_code_elimination),shape_propagation",
        # Folds weights; the caller uploads the values to be folded.
        "inference": "remove_dropout,constant_fold,fuse_conv_bn,fuse_linear_bn,"
        "until_stable(no_op_elimination,remove_duplicate_casts,sink_views,"
        "common_subexpression_elimination,dead_code_elimination),fuse_attention,"
        "dead_code_elimination,shape_propagation",
        # Keeps everything that is trained, drawn or updated.
        "training": "until_stable(no_op_elimination,remove_duplicate_casts,"
        "common_subexpression_elimination,dead_code_elimination),shape_propagation",
    }
)


class NamedPipelines:
    """Pipelines by name, checked on construction.

    Args:
        registry: The available passes.
        own: The operator's pipelines: name to spelling. They may replace built-in ones.

    Raises:
        ValueError: A name is that of a pass, or a spelling is invalid; names the pipeline.
    """

    def __init__(self, registry: Registry, own: Mapping[str, str] | None = None) -> None:
        self._specs: dict[str, list[pb.PassSpec]] = {}
        self._spellings: dict[str, str] = {}
        known = self._passes = registry.names()
        for name, spelling in {**BUILTIN_PIPELINES, **(own or {})}.items():
            if name in known:
                raise ValueError(f"pipeline {name!r}: a pass has this name")
            try:
                specs = messages(normalize(spelling))
                self._spellings[name] = pipeline_of(registry, specs).spelling
            except (LazyfxError, PassError) as error:
                raise ValueError(f"pipeline {name!r}: {error}") from error
            self._specs[name] = specs

    def expand(self, specs: Iterable[pb.PassSpec]) -> list[pb.PassSpec]:
        """The passes of a request, with names of pipelines replaced by their passes.

        Raises:
            PassError: A pipeline has options, rewrites or passes; or a name is neither a pass nor a
                pipeline.
        """
        return [each for place, spec in enumerate(specs) for each in self._expand(place, spec)]

    def describe(self) -> Iterator[pb.PipelineDescription]:
        """The pipelines, by name."""
        for name in sorted(self._spellings):
            yield pb.PipelineDescription(name=name, spelling=self._spellings[name])

    def _expand(self, place: int, spec: pb.PassSpec) -> list[pb.PassSpec]:
        found = self._specs.get(spec.name)
        if found is None:
            if spec.name not in self._passes and spec.name != UNTIL_STABLE:
                raise self._unknown(spec.name, place)
            return [spec]
        if spec.options or spec.rewrites or spec.passes:
            raise PassError(
                f"is the pipeline {self._spellings[spec.name]!r} and takes no options; write its "
                "passes to change them",
                field=f"passes[{place}]",
                pass_name=spec.name,
            )
        return found

    def _unknown(self, name: str, place: int) -> PassError:
        meant = did_you_mean(name, (*self._passes, UNTIL_STABLE, *self._spellings), SHORT_NAMES)
        return PassError(
            f"no pass or pipeline is named {shown(name)}{meant}", field=f"passes[{place}].name"
        )
