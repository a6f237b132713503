"""Checks small answers: malformed ones are refused."""

from __future__ import annotations

import math
from typing import Final, TypeVar

from google.protobuf.message import DecodeError as ProtobufError
from google.protobuf.message import Message

from lazyfx.errors import DecodeError, ProtocolError
from lazyfx.shared.answers.answer_bounds import AnswerBounds
from lazyfx.v1 import compiler_pb2 as pb

Read = TypeVar("Read", bound=Message)

_KEY_BYTES: Final = 32
_MAX_CONSTANTS: Final = 200_000
# Of a report, which is shown as a whole; a request has 64 passes unless its server allows more.
_MAX_REPORTED = {"passes": 4096, "modules": 100_000}


def check_response(response: pb.CompileResponse, bounds: AnswerBounds) -> None:
    """Check the answer to a compile.

    Raises:
        ProtocolError: A key or a digest is malformed, the report is too long, or the constants are
            too many or large.
    """
    if len(response.module_key) != _KEY_BYTES:
        raise ProtocolError("must be 32 bytes long", field="module_key")
    if len(response.request_token) not in (0, _KEY_BYTES):
        raise ProtocolError("must be 32 bytes long", field="request_token")
    report = response.report
    seconds = (report.seconds, report.pass_seconds, report.queue_seconds, report.saved_seconds)
    if not all(map(math.isfinite, seconds)):
        raise ProtocolError("invalid duration", field="report")
    for part, most in _MAX_REPORTED.items():
        found = len(getattr(report, part))
        if found > most:
            raise ProtocolError(
                f"has {found} entries; at most {most} are allowed", field=f"report.{part}"
            )
    if not response.constants:
        return
    if len(response.constants) > _MAX_CONSTANTS:
        raise ProtocolError(
            f"has {len(response.constants)} entries; at most {_MAX_CONSTANTS} are allowed",
            field="constants",
        )
    if any(len(digest.sha256) != _KEY_BYTES for digest in response.constants):
        raise ProtocolError("a digest must be 32 bytes long", field="constants")
    size = sum(digest.size_bytes for digest in response.constants)
    if size > bounds.max_constant_bytes:
        raise ProtocolError(
            f"{size} bytes; at most {bounds.max_constant_bytes} are allowed (max_constant_bytes)",
            field="constants",
        )


def read_text(data: bytes) -> str:
    """Decode an artifact that is text.

    Raises:
        DecodeError: It is not UTF-8.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise DecodeError("the server's text is not UTF-8") from None


def read_message(kind: type[Read], data: bytes) -> Read:
    """Parse an artifact that is a message.

    Raises:
        DecodeError: It is not such a message.
    """
    try:
        return kind.FromString(data)
    except (ProtobufError, UnicodeDecodeError, RecursionError):
        raise DecodeError(f"the server's answer is not a {kind.__name__}") from None
