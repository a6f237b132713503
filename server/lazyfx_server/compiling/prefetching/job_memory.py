"""What jobs asked for when they last ran, in the store.

A job is known by digests that its client chooses, within its tenant. What is remembered is what
the client said: it is checked as requests are, also when it is read, and only ever looked up.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from lazyfx.shared.native.named_values import NamedValueError
from lazyfx.shared.native.native_request import check_request
from lazyfx.shared.native.prefetch_keys import (
    KEY_BYTES,
    MAX_ARTIFACTS,
    MAX_COMPILE_BYTES,
    MAX_JOB_BYTES,
    MAX_JOBS,
    MAX_NATIVES,
    AskedArtifacts,
    remembered_compile,
)
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.store import Store


class JobMemory:
    """Remembers what jobs asked for.

    Args:
        store: Records under "jobs/", sealed for their tenants.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def remember(self, request: pb.RememberJobRequest, tenant: Tenant) -> None:
        """Remember what a job of a tenant asked for, before what is remembered.

        What is remembered under the first digest is replaced if the job has ended, so that what it
        needs no more is not sent for ever. Other ranks and arguments share the further digests. Of
        two requests at the same moment, one may be lost: its artifacts are asked for again.

        Raises:
            InvalidRequestError: A field is wrong.
        """
        _check_jobs(request.jobs)
        _check_remembered(request)
        for i, job in enumerate(request.jobs):
            asked = AskedArtifacts()
            asked.add_all(request)
            replaces = request.has_ended and i == 0
            if not replaces and (earlier := await self._read(job, tenant)) is not None:
                asked.add_all(earlier)
            data = asked.record.SerializeToString(deterministic=True)
            place = tenant.job(job)
            await self._store.put(place, tenant.seal.close(place, data))

    async def recall(self, jobs: Iterable[bytes], tenant: Tenant) -> pb.RememberJobRequest | None:
        """What the first of these jobs of a tenant that is known asked for.

        Raises:
            InvalidRequestError: A digest is malformed.
        """
        jobs = list(jobs)
        _check_jobs(jobs)
        for job in jobs:
            if (record := await self._read(job, tenant)) is not None:
                return record
        return None

    async def _read(self, job: bytes, tenant: Tenant) -> pb.RememberJobRequest | None:
        place = tenant.job(job)
        stored = await self._store.get(place)
        data = None if stored is None else tenant.seal.open(place, stored)
        return None if data is None else _checked(data)


def _checked(data: bytes) -> pb.RememberJobRequest | None:
    """A record; None if it was written by a server that knows other settings or bounds."""
    try:
        record = pb.RememberJobRequest.FromString(data)
        _check_remembered(record)
    except (DecodeError, InvalidRequestError):
        return None
    return record


def _check_jobs(jobs: Iterable[bytes]) -> None:
    found = list(jobs)
    if not 0 < len(found) <= MAX_JOBS:
        raise InvalidRequestError.of_field(
            "jobs", f"has {len(found)} entries; send 1 to {MAX_JOBS} digests"
        )
    for i, job in enumerate(found):
        if len(job) != KEY_BYTES:
            raise InvalidRequestError.of_field(
                f"jobs[{i}]", f"has {len(job)} bytes; a digest of {KEY_BYTES} bytes is expected"
            )


def _check_remembered(request: pb.RememberJobRequest) -> None:
    for name, most in (("artifacts", MAX_ARTIFACTS), ("natives", MAX_NATIVES)):
        if (count := len(getattr(request, name))) > most:
            raise InvalidRequestError.of_field(
                name, f"has {count} entries; at most {most} are remembered"
            )
    if (size := request.ByteSize()) > MAX_JOB_BYTES:
        raise InvalidRequestError.of_field(
            "artifacts", f"has {size} bytes with natives; at most {MAX_JOB_BYTES} are remembered"
        )
    for i, native in enumerate(request.natives):
        try:
            check_request(native)
        except NamedValueError as error:
            field = f"natives[{i}]{error.field.removeprefix('native')}"
            raise InvalidRequestError.of_field(field, error.reason) from error
    for i, artifact in enumerate(request.artifacts):
        _check_artifact(artifact, f"artifacts[{i}]", len(request.natives))


def _check_artifact(artifact: pb.RememberedArtifact, field: str, natives: int) -> None:
    asked = artifact.compile
    if asked.ByteSize() > MAX_COMPILE_BYTES:
        raise InvalidRequestError.of_field(
            f"{field}.compile", f"is longer than {MAX_COMPILE_BYTES} bytes; leave it out"
        )
    if len(asked.graph_digest.sha256) != KEY_BYTES:
        raise InvalidRequestError.of_field(
            f"{field}.compile.graph_digest.sha256", f"must have {KEY_BYTES} bytes"
        )
    if asked != remembered_compile(asked):
        raise InvalidRequestError.of_field(
            f"{field}.compile",
            "may only have graph_digest, passes, eager and verify; leave every other field unset",
        )
    if artifact.native >= natives:
        raise InvalidRequestError.of_field(
            f"{field}.native", f"is {artifact.native}; there are {natives} natives"
        )
