"""Pass lists of requests, as messages, turned into pipelines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.pipeline import Pipeline
from lazyfx_server.passes.registry import Registry


def pipeline_of(registry: Registry, specs: Sequence[pb.PassSpec]) -> Pipeline:
    """Make the pipeline that a request names.

    Raises:
        PassError: A pass or an option is unknown or has the wrong type; `field` is its
            path in the request.
    """
    passes = []
    rewrites: dict[int, tuple[tuple[bytes, bytes], ...]] = {}
    for place, spec in enumerate(specs):
        where = f"passes[{place}]"
        try:
            passes.append(registry.create(spec.name, _options(spec.options)))
        except PassError as error:
            raise error.at(where, spec.name) from error
        if spec.rewrites and spec.name != "replace_pattern":
            raise PassError(
                "takes no rewrites; only replace_pattern does", field=f"{where}.rewrites"
            )
        rewrites[place] = tuple(
            (_digest(r.pattern.body), _digest(r.replacement.body)) for r in spec.rewrites
        )
    return Pipeline(tuple(passes), rewrites)


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
        raise PassError("nests lists; one level is taken", field=f"options.{name}")
    return [_value(name, item, depth + 1) for item in value.list.items]


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()
