"""Tokens and uploads, on whichever of several servers that share a Redis."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
import redis
from harness import (
    CSE,
    DCE,
    compile_request,
    connected,
    graph_of,
    refused,
    wait_until,
)
from replicas import HIT, compile_of

from lazyfx.calls.uploading import CHUNK_BYTES, upload
from lazyfx.capture.blob import Blob
from lazyfx.errors import InvalidRequestError
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.blobs.shared_parts import PART_BYTES


def test_token_of_one_server_is_known_to_all(patient):
    one, two, three = patient.servers
    with connected(one.address) as stub:
        compile_of(8.0)(stub)
        whole = compile_request(graph_of(8.0), CSE, DCE, inline=False)
        hit = stub.Compile(whole)
        assert hit.cache.status == HIT
        short = pb.CompileRequest(request_token=hit.request_token)
        assert stub.Compile(short).module_key == hit.module_key
    for server in (two, three):
        with connected(server.address) as stub:
            wait_until(lambda s=stub: answers_hit(s, short), "the token on another server")
            assert stub.Compile(short).module_key == hit.module_key
            # What it stands for is known there as well.
            assert stub.Compile(whole).request_token == hit.request_token


def answers_hit(stub: Any, request: pb.CompileRequest) -> bool:
    try:
        return stub.Compile(request).cache.status == HIT
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.FAILED_PRECONDITION:
            return False
        raise


def test_who_can_write_to_redis_cannot_give_tokens(patient):
    """A token is the digest of its request, and an entry is authenticated."""
    one, two, _ = patient.servers
    with connected(one.address) as stub:
        compile_of(9.0)(stub)
        token = stub.Compile(compile_request(graph_of(9.0), CSE, DCE, inline=False)).request_token
    client = redis.Redis(port=patient.store.port)
    wait_until(lambda: len(client.keys("lazyfx:1:requests/*")) > 1, "stored requests")
    names = client.keys("lazyfx:1:requests/*")
    values = [client.get(name) for name in names]
    for name, value in zip(names, values[1:] + values[:1], strict=True):
        client.set(name, value)
    with connected(two.address) as stub:
        told = refused(lambda: stub.Compile(pb.CompileRequest(request_token=token)))
        assert told.missing == (f"requests/{token.hex()}",)


def test_upload_goes_on_at_another_server(patient):
    """Every call goes to the next server, as behind a load balancer."""
    one, two, three = patient.servers
    data = os.urandom(3_000_000)
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    ask = pb.FindMissingBlobsRequest(digests=[digest])

    def chunks(start: int, until: int) -> Iterator[pb.UploadBlobsRequest]:
        for offset in range(start, until, 100_000):
            part = data[offset : min(offset + 100_000, until)]
            yield pb.UploadBlobsRequest(digest=digest, offset=offset, data=part)

    with connected(one.address) as stub:
        refused(lambda: stub.UploadBlobs(chunks(0, 1_500_000)))
        assert list(stub.FindMissingBlobs(ask).received) == [1_500_000]
    # Whole pieces are known to all.
    with connected(two.address) as stub:
        assert list(stub.FindMissingBlobs(ask).received) == [PART_BYTES]
        refused(lambda: stub.UploadBlobs(chunks(PART_BYTES, 2_500_000)))
    with connected(three.address) as stub:
        assert list(stub.FindMissingBlobs(ask).received) == [2 * PART_BYTES]
        # Nobody else's, and nothing but the next byte.
        far = pb.UploadBlobsRequest(digest=digest, offset=1_000_000, data=data[1_000_000:])
        assert "the next byte is 0" in refused(lambda: stub.UploadBlobs(iter([far]))).message
    with connected(two.address) as stub:
        assert stub.UploadBlobs(chunks(2_500_000, len(data))).stored == 1
    # At once: it was told to be stored when all servers could find it.
    for server in (three, one):
        with connected(server.address) as stub:
            assert not stub.FindMissingBlobs(ask).missing
    client = redis.Redis(port=patient.store.port)
    wait_until(lambda: not client.keys("lazyfx:1:uploads/*"), "the pieces are deleted")


def test_wrong_bytes_of_an_upload_are_not_resumed(patient):
    data, wrong = os.urandom(3_000_000), os.urandom(1_500_000)
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    ask = pb.FindMissingBlobsRequest(digests=[digest])
    with connected(patient.servers[0].address) as stub:
        part = pb.UploadBlobsRequest(digest=digest, data=wrong)
        refused(lambda: stub.UploadBlobs(iter([part])))
    with connected(patient.servers[1].address) as stub:
        rest = pb.UploadBlobsRequest(digest=digest, offset=PART_BYTES, data=data[PART_BYTES:])
        assert "does not match" in refused(lambda: stub.UploadBlobs(iter([rest]))).message
        wait_until(lambda: list(stub.FindMissingBlobs(ask).received) == [0], "the pieces are gone")
        whole = pb.UploadBlobsRequest(digest=digest, data=data)
        assert stub.UploadBlobs(iter([whole])).stored == 1


def test_client_begins_again_where_an_upload_was_not_begun(patient):
    """It is told by one server how much there is, and sends the rest to another one."""
    data = os.urandom(1_900_000)  # too small to be shared
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    sent: list[list[int]] = []
    with connected(patient.servers[0].address) as one, connected(patient.servers[1].address) as two:

        def find(digests):
            return one.FindMissingBlobs(pb.FindMissingBlobsRequest(digests=digests))
            yield

        def send(chunks):
            parts = [pb.UploadBlobsRequest.FromString(chunk) for chunk in chunks]
            sent.append([part.offset for part in parts])
            try:
                return two.UploadBlobs(iter(parts))
            except grpc.RpcError as error:
                raise InvalidRequestError(error.details(), code=error.code().name) from error
            yield

        part = pb.UploadBlobsRequest(digest=digest, data=data[: CHUNK_BYTES * 3])
        refused(lambda: one.UploadBlobs(iter([part])))
        blob = Blob(digest, lambda: memoryview(data))
        assert [*upload([blob], find, send, on_refused=pytest.fail)] == []
        ask = pb.FindMissingBlobsRequest(digests=[digest])
        assert not one.FindMissingBlobs(ask).missing
    assert [offsets[0] for offsets in sent] == [CHUNK_BYTES * 3, 0]
