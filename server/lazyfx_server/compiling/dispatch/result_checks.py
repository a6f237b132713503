"""Checks a worker's answer before it is stored, signed or sent.

A worker may have been compromised by its input.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterable

from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.errors import InternalError
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS
from lazyfx_server.telemetry.plain_text import escaped
from lazyfx_server.v1 import worker_pb2 as worker

_MAX_REPORT_BYTES = 4 * 2**20
_MAX_MEDIA_TYPE = 100
# Checking a body of this size takes about a millisecond, acceptable on the event loop.
_ON_LOOP_BYTES = 8 * 1024


async def check_compile_result(result: worker.CompileResult) -> None:
    """Check the result of a compile.

    Raises:
        InternalError: It is not a valid answer.
    """
    if len(result.graph.graph.body) <= _ON_LOOP_BYTES:
        _check_compiled(result)
    else:
        await asyncio.to_thread(_check_compiled, result)


def _check_compiled(result: worker.CompileResult) -> None:
    try:
        body = wire.check_canonical(result.graph.graph.body)
    except DecodeError as error:
        raise InternalError("the worker answered with something that is not a graph") from error
    if len(result.graph.provenance) != len(body.graphs):
        raise InternalError("the worker answered with the origins of a different graph")
    for origin, graph in zip(result.graph.provenance, body.graphs, strict=True):
        if len(origin.attributes) != len(graph.attributes):
            raise InternalError("the worker answered with the origins of a different graph")
    for constant in result.constants:
        if hashlib.sha256(constant.data).digest() != constant.digest.sha256:
            raise InternalError("the worker answered with a constant under a wrong digest")
    _check_report(result.report)


def _check_report(report: pb.CompileReport) -> None:
    if report.ByteSize() > _MAX_REPORT_BYTES:
        raise InternalError("the worker answered with a report that is too long")
    numbers = [report.seconds, report.pass_seconds, report.saved_seconds]
    numbers += [row.seconds for row in report.passes]
    if not _are_durations(numbers):
        raise InternalError("the worker answered with an invalid duration")
    report.pipeline = escaped(report.pipeline)
    for passed in report.passes:
        passed.note, passed.spelling = escaped(passed.note), escaped(passed.spelling)
        for forced in passed.forced:
            forced.where = escaped(forced.where)


def check_render_result(job: worker.RenderJob, result: worker.RenderResult) -> None:
    """Check the result of a rendering.

    Raises:
        InternalError: It is not a valid answer.
    """
    media = result.media_type
    if not media.isascii() or not media.isprintable() or not 0 < len(media) <= _MAX_MEDIA_TYPE:
        raise InternalError("the worker rendered an artifact without a media type")
    if not _are_durations([result.seconds]):
        raise InternalError("the worker answered with an invalid duration")
    if ARTIFACT_KINDS[job.kind].is_text:
        try:
            result.data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InternalError("the worker rendered something that is not text") from error


def _are_durations(seconds: Iterable[float]) -> bool:
    return all(math.isfinite(value) and value >= 0 for value in seconds)
