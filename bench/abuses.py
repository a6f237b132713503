"""Cheap requests that are expensive for a server, as bytes on the wire; sent by `bench.abuse`.

Most of these once blocked a server for seconds. Those that fill a message stay just below the
default of `max_message_bytes`, so that the server must read them; larger ones are refused at their
first bytes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import grpc

from lazyfx.v1 import graph_pb2

MB: Final = 2**20
FULL: Final = 4 * MB - 1024
"""Bytes of content that a message can hold by default."""
OVER: Final = 16 * MB
"""Bytes that it cannot hold."""
SERVICE: Final = "/lazyfx.v1.GraphCompiler/"


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def inside(field: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(field << 3 | 2) + varint(len(content)) + content


@dataclass(frozen=True)
class Abuse:
    """One way to abuse a server.

    Attributes:
        method: Name of a method of the service, or the path of another one.
        make: Creates the messages of one call: one, or those of a stream.
        field: The field that a refusal names; "" for the message itself.
        code: Status of the response.
        metadata: Headers to send.
        seconds: When the caller gives up, with the status CANCELLED.
        compressed: Send the messages compressed.
        blob: Uploaded first, unless the server has it.
    """

    method: str
    make: Callable[[], Sequence[bytes]]
    field: str = ""
    code: str = "INVALID_ARGUMENT"
    metadata: Sequence[tuple[str, str]] = ()
    seconds: float = 60.0
    compressed: bool = False
    blob: Callable[[], bytes] | None = None

    @property
    def path(self) -> str:
        """Path of the call."""
        return self.method if self.method.startswith("/") else SERVICE + self.method

    @property
    def streams(self) -> bool:
        """Whether requests are a stream."""
        return self.method in ("CompileBatch", "UploadBlobs")

    @property
    def answers_stream(self) -> bool:
        """Whether responses are a stream."""
        return self.method in ("CompileBatch", "GetArtifact")


_NUMBERS = itertools.count()


def digest_of(data: bytes) -> bytes:
    """The fields of a Digest."""
    return inside(1, hashlib.sha256(data).digest()) + b"\x10" + varint(len(data))


def compile_body(body: bytes, passes: bytes = b"") -> bytes:
    """A CompileRequest for a body, with the digest that it has."""
    graph = b"\x08\x01" + inside(3, body)
    return inside(1, digest_of(body)) + inside(2, graph) + passes


def fresh(size: int) -> bytes:
    """Bytes that are not a graph, different in each process and call."""
    return b"\xff" * (size - 32) + hashlib.sha256(b"%d" % next(_NUMBERS)).digest()


def upload(data: bytes, whole: bytes, offset: int = 0) -> bytes:
    """A chunk of an upload."""
    return inside(1, digest_of(whole)) + b"\x10" + varint(offset) + inside(3, data)


def chain(calls: int, argument: graph_pb2.Argument | None = None) -> bytes:
    """A graph with this many equal calls of torch.neg, optionally with an extra argument."""
    body = graph_pb2.GraphBody()
    body.targets.add(kind=graph_pb2.TARGET_KIND_FUNCTION, name="torch.neg")
    operand = graph_pb2.Argument(operand=graph_pb2.Empty())
    body.calls.add(opcode=graph_pb2.OPCODE_PLACEHOLDER)
    arguments = [operand] if argument is None else [operand, argument]
    body.calls.add(opcode=graph_pb2.OPCODE_CALL_FUNCTION, target=1, args=arguments)
    body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT, args=[operand])
    body.graphs.add(calls=[0, *[1] * calls, 2], operands=[1] * (calls + 1))
    return body.SerializeToString(deterministic=True)


def nested(depth: int) -> bytes:
    """A graph whose call contains lists nested deeper than protobuf's own writer supports."""
    marker = graph_pb2.Argument(text=123_456)
    body = graph_pb2.GraphBody.FromString(chain(1, marker))
    row = graph_pb2.Argument(none=graph_pb2.Empty()).SerializeToString()
    for _ in range(depth):
        row = inside(8, inside(1, row))
    call = body.calls[1].SerializeToString(deterministic=True)
    old = inside(3, marker.SerializeToString())
    longer = call.replace(old, inside(3, row))
    return body.SerializeToString(deterministic=True).replace(inside(8, call), inside(8, longer))


PASS: Final = 3
_UNUSED: Final = 200
_BLOB: Final = b"\xff" * (32 * MB)
_LONG_NAMES: Final = b"".join(inside(PASS, inside(1, b"%03d" % i + b"e" * 250)) for i in range(64))


def _compile(field: str, make: Callable[[], bytes], code: str = "INVALID_ARGUMENT") -> Abuse:
    return Abuse("Compile", lambda: [make()], field, code)


def _over(method: str, field_number: int = 1) -> Abuse:
    """A message over the bound on messages."""
    return Abuse(method, lambda: [inside(field_number, bytes(OVER))], code="RESOURCE_EXHAUSTED")


_LISTS = "passes[0].options[0].value.list.items"

# Refused by the scan of a message's bytes, before any object is created.
OVER_A_BOUND: Final[Mapping[str, Abuse]] = {
    # Many parts of a request, each of which would become an object.
    "empty passes": _compile("passes", lambda: b"\x1a\x00" * (FULL // 2)),
    "empty options": _compile("passes[0].options", lambda: inside(PASS, b"\x12\x00" * (FULL // 2))),
    "empty rewrites": _compile(
        "passes[0].rewrites", lambda: inside(PASS, b"\x1a\x00" * (FULL // 2))
    ),
    "passes in passes": _compile(
        "passes[0].passes", lambda: inside(PASS, b"\x22\x00" * (FULL // 2))
    ),
    "empty guards": _compile(
        "passes[0].rewrites[0].guards", lambda: inside(PASS, inside(3, b"\x1a\x00" * (FULL // 2)))
    ),
    "empty lists in a list": _compile(
        _LISTS, lambda: inside(PASS, inside(2, inside(2, inside(5, b"\x0a\x00" * 30_000))))
    ),
    "empty values": _compile("values", lambda: b"\x22\x00" * (FULL // 2)),
    "values": _compile("values", lambda: inside(4, inside(3, inside(1, bytes(32)))) * (FULL // 38)),
    "empty names": _compile(
        "graph.presentation.graphs[0].stems",
        lambda: inside(2, inside(4, inside(1, b"\x0a\x00" * (FULL // 2)))),
    ),
    "empty features": _compile(
        "graph.required_features", lambda: inside(2, b"\x12\x00" * (FULL // 2))
    ),
    "unknown fields": _compile("", lambda: inside(_UNUSED, b"") * (FULL // 3)),
    "digests": Abuse(
        "FindMissingBlobs", lambda: [inside(1, inside(1, bytes(32))) * (FULL // 36)], "digests"
    ),
    "empty digests": Abuse("FindMissingBlobs", lambda: [b"\x0a\x00" * (FULL // 2)], "digests"),
    "native settings": Abuse(
        "GetArtifact", lambda: [inside(7, b"\x1a\x00" * (FULL // 2))], "native.settings"
    ),
    "processor flags": Abuse(
        "GetArtifact",
        lambda: [inside(7, inside(1, b"\x2a\x00" * (FULL // 2)))],
        "native.target.cpu_flags",
    ),
    "fields of an empty request": Abuse("GetStats", lambda: [b"\x0a\x00" * (FULL // 2)]),
    # Few but long parts.
    "a long name of a pass": _compile(
        "passes[0].name", lambda: inside(PASS, inside(1, b"a" * FULL))
    ),
    "a long name of an option": _compile(
        "passes[0].options[0].name", lambda: inside(PASS, inside(2, inside(1, b"a" * FULL)))
    ),
    "a long option": _compile(
        "passes[0].options[0].value",
        lambda: inside(PASS, inside(2, inside(2, inside(4, b"a" * FULL)))),
    ),
    "a long name of a node": _compile(
        "graph.presentation.graphs[0].stems[0]",
        lambda: inside(2, inside(4, inside(1, inside(1, b"a" * FULL)))),
    ),
    "a long token": _compile("request_token", lambda: inside(8, bytes(FULL))),
    "a long digest": _compile("graph_digest", lambda: inside(1, inside(1, bytes(FULL)))),
    "names of an artifact": Abuse(
        "GetArtifact",
        lambda: [inside(3, inside(1, inside(1, b"a" * FULL)))],
        "presentation.graphs[0].stems[0]",
    ),
    "unknown bytes": Abuse("GetServerInfo", lambda: [inside(9, bytes(FULL))]),
}

ABUSES: Final[Mapping[str, Abuse]] = {
    **OVER_A_BOUND,
    "names of passes that are almost right": _compile(
        "passes[0].name", lambda: compile_body(chain(2), _LONG_NAMES)
    ),
    "headers": Abuse(
        "GetStats", lambda: [b""], code="RESOURCE_EXHAUSTED", metadata=[("x-long", "a" * 100_000)]
    ),
    "a probe with a long name": Abuse(
        "/grpc.health.v1.Health/Check", lambda: [inside(1, b"a" * FULL)], code="NOT_FOUND"
    ),
    "an unknown method": Abuse("Format", lambda: [bytes(FULL)], code="UNIMPLEMENTED"),
    # Over the bound on messages.
    "a compile of 16 MB": _over("Compile", PASS),
    "digests of 16 MB": _over("FindMissingBlobs"),
    "an artifact of 16 MB": _over("GetArtifact"),
    "unknown bytes of 16 MB": _over("GetServerInfo", 9),
    "a chunk of 16 MB": _over("UploadBlobs", 3),
    "16 MB of zeros, compressed": Abuse(
        "Compile", lambda: [inside(PASS, bytes(OVER))], code="RESOURCE_EXHAUSTED", compressed=True
    ),
    # Malformed.
    "a graph twice": _compile("graph", lambda: inside(2, b"") * 2),
    "a message cut short": _compile("", lambda: b"\x1a\x7f"),
    "a number without an end": _compile("", lambda: b"\x28" + b"\xff" * 20),
    "a group": _compile("", lambda: b"\x1b\x1c"),
    # Work for workers.
    "a body that is no graph": _compile("graph.body", lambda: compile_body(fresh(FULL - 200))),
    "a body with another digest": _compile(
        "graph_digest.sha256",
        lambda: inside(1, digest_of(b"")) + inside(2, b"\x08\x01" + inside(3, bytes(FULL - 200))),
    ),
    "a large blob that is no graph": Abuse(
        "Compile", lambda: [inside(1, digest_of(_BLOB))], "graph.body", blob=lambda: _BLOB
    ),
    "lists 10,000 deep": _compile("graph.body", lambda: compile_body(nested(10_000))),
    "a million nodes": _compile("graph.graphs[0].calls[0]", lambda: compile_body(chain(1_000_000))),
    "calls that are given up": Abuse(
        "Compile",
        lambda: [compile_body(fresh(FULL - 200))],
        code="DEADLINE_EXCEEDED",
        seconds=0.002,
    ),
    # Streams.
    "a batch of bad requests": Abuse(
        "CompileBatch",
        lambda: [b"\x08" + varint(i) + inside(2, b"\x1a\x00" * 10_000) for i in range(200)],
        code="OK",
    ),
    "a batch of nothing": Abuse("CompileBatch", lambda: [b""] * 500, code="OK"),
    "an upload with another digest": Abuse(
        "UploadBlobs", lambda: [upload(bytes(MB), b"\1" * MB)], "digest.sha256"
    ),
    "an upload out of order": Abuse(
        "UploadBlobs", lambda: [upload(bytes(MB), bytes(4 * MB), 2 * MB)], "offset"
    ),
    "an upload that ends early": Abuse(
        "UploadBlobs", lambda: [upload(bytes(MB), fresh(8 * MB), 0)], "data"
    ),
    "empty chunks": Abuse("UploadBlobs", lambda: [b""] * 500, "digest.sha256"),
}


def send(channel: grpc.Channel, abuse: Abuse, messages: Sequence[bytes]) -> object:
    """Make the call.

    Raises:
        grpc.RpcError: The server, or gRPC for it, refused.
    """
    if abuse.blob is not None:
        _provide(channel, abuse.blob())
    kind = ("stream" if abuse.streams else "unary", "stream" if abuse.answers_stream else "unary")
    call = getattr(channel, "_".join(kind))(abuse.path, None, None)
    given = iter(messages) if abuse.streams else messages[0]
    compression = grpc.Compression.Gzip if abuse.compressed else None
    answer = call(given, timeout=abuse.seconds, metadata=abuse.metadata, compression=compression)
    return list(answer) if abuse.answers_stream else answer


def _provide(channel: grpc.Channel, blob: bytes) -> None:
    find = channel.unary_unary(f"{SERVICE}FindMissingBlobs", None, None)
    if find(inside(1, digest_of(blob)), timeout=60):
        chunks = (upload(blob[at : at + MB], blob, at) for at in range(0, len(blob), MB))
        channel.stream_unary(f"{SERVICE}UploadBlobs", None, None)(chunks, timeout=60)


def kinds() -> Iterator[tuple[str, Abuse, Sequence[bytes]]]:
    """Each abuse with newly created messages."""
    for name, abuse in ABUSES.items():
        yield name, abuse, abuse.make()
