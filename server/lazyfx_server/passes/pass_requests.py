"""Turns the pass lists of requests into pipelines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

from lazyfx.shared.pass_spelling import UNTIL_STABLE
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.passes.base import Pass
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.pipeline import DEFAULT_ROUNDS, Pipeline, Step, UntilStable
from lazyfx_server.passes.registry import Registry

# Maximum rounds of until_stable.
MAX_ROUNDS = 64


def pipeline_of(registry: Registry, specs: Sequence[pb.PassSpec]) -> Pipeline:
    """Create the pipeline of a request.

    Raises:
        PassError: A pass or an option is unknown or has the wrong type; `field` is its
            path in the request.
    """
    steps: list[Step] = []
    for place, spec in enumerate(specs):
        where = f"passes[{place}]"
        if spec.name == UNTIL_STABLE:
            steps.append(_group(registry, spec, where))
        else:
            steps.append(_pass(registry, spec, where))
    digests = {number: _digests(spec) for number, spec in enumerate(flat_specs(specs))}
    return Pipeline(tuple(steps), {n: found for n, found in digests.items() if found})


def flat_specs(specs: Iterable[pb.PassSpec]) -> Iterator[pb.PassSpec]:
    """The specs of passes in index order, with groups flattened."""
    for spec in specs:
        if spec.name == UNTIL_STABLE:
            yield from spec.passes
        else:
            yield spec


def placed_specs(specs: Iterable[pb.PassSpec]) -> Iterator[tuple[str, pb.PassSpec]]:
    """Like `flat_specs`, each with its path in the request."""
    for place, spec in enumerate(specs):
        if spec.name == UNTIL_STABLE:
            for inner, each in enumerate(spec.passes):
                yield f"passes[{place}].passes[{inner}]", each
        else:
            yield f"passes[{place}]", spec


def _group(registry: Registry, spec: pb.PassSpec, where: str) -> UntilStable:
    options = _placed_options(spec, where)
    at_most = options.pop("at_most", DEFAULT_ROUNDS)
    if options:
        raise PassError("has one option, at_most", field=f"{where}.options")
    if type(at_most) is not int or not 1 <= at_most <= MAX_ROUNDS:
        raise PassError(f"must be an int from 1 to {MAX_ROUNDS}", field=f"{where}.options.at_most")
    if not spec.passes:
        raise PassError("must name the passes to repeat", field=f"{where}.passes")
    inner = [
        _pass(registry, each, f"{where}.passes[{place}]") for place, each in enumerate(spec.passes)
    ]
    return UntilStable(tuple(inner), at_most)


def _pass(registry: Registry, spec: pb.PassSpec, where: str) -> Pass:
    if spec.passes:
        raise PassError(f"takes no passes; only {UNTIL_STABLE} does", field=f"{where}.passes")
    if spec.rewrites and spec.name != "replace_pattern":
        raise PassError("takes no rewrites; only replace_pattern does", field=f"{where}.rewrites")
    try:
        return registry.create(spec.name, _options(spec.options))
    except PassError as error:
        raise error.at(where, spec.name) from error


def _placed_options(spec: pb.PassSpec, where: str) -> dict[str, object]:
    try:
        return _options(spec.options)
    except PassError as error:
        raise error.at(where, spec.name) from error


def _digests(spec: pb.PassSpec) -> tuple[tuple[bytes, ...], ...]:
    return tuple(
        (_digest(r.pattern.body), _digest(r.replacement.body), *_conditions(r))
        for r in spec.rewrites
    )


def _conditions(rewrite: pb.Rewrite) -> tuple[bytes, ...]:
    if not (rewrite.guards or rewrite.at_most or rewrite.constants):
        return ()
    conditions = pb.Rewrite(
        guards=rewrite.guards,
        at_most=rewrite.at_most,
        constants=[_digest(each) for each in rewrite.constants],
    )
    return (_digest(conditions.SerializeToString(deterministic=True)),)


def _options(options: Iterable[pb.PassOption]) -> dict[str, object]:
    values: dict[str, object] = {}
    for option in options:
        if option.name in values:
            raise PassError("is given twice", field=f"options.{option.name}")
        values[option.name] = _value(option.name, option.value)
    return values


def _value(name: str, value: pb.OptionValue, depth: int = 0) -> object:
    kind = value.WhichOneof("kind")
    if kind is None:
        raise PassError("has no value", field=f"options.{name}")
    if kind != "list":
        return getattr(value, kind)
    if depth:
        raise PassError("nests lists; only one level is allowed", field=f"options.{name}")
    return [_value(name, item, depth + 1) for item in value.list.items]


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
