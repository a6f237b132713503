"""Frames between the server and its bridge process: facts in JSON, then bytes.

A frame is four bytes of length of the facts and eight of the body (big-endian), then both. Its
kinds, with the facts of each:

====================  =====================================================================
server to bridge
====================  =====================================================================
run                   number, node, pool, timeout, owner, may_call; the body is the job
cancel                number
answer                number, call, refused (a reason, or null); the body is the answer
ask                   number, node; the body is the question
====================  =====================================================================

====================  =====================================================================
bridge to server
====================  =====================================================================
pulse                 Ray's head node answers
node_up               node, host, slots; the body is the node's description
node_down             node, host, reason, refused (whether it will never be tried again)
lost                  reason: the head node does not answer; the bridge ends
call                  number, call; the body is the question of a job
ended                 number, outcome (null for a result); the body is the result
answered              number, error (or null); the body is the answer to an `ask`
====================  =====================================================================
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

_HEADER: Final = struct.Struct("!IQ")
_MAX_FACTS: Final = 1 << 20
MAX_BODY_BYTES: Final = 8 << 30


class Frame(NamedTuple):
    """One frame.

    Attributes:
        kind: Its kind.
        facts: As listed above.
        body: Its bytes.
    """

    kind: str
    facts: dict[str, Any]
    body: bytes


def write_frame(
    writer: asyncio.StreamWriter,
    kind: str,
    body: bytes | Sequence[bytes | memoryview] = b"",
    **facts: Any,
) -> None:
    """Write a frame; large parts are not copied."""
    parts = [body] if isinstance(body, bytes) else body
    head = json.dumps({"kind": kind, **facts}).encode()
    writer.write(_HEADER.pack(len(head), sum(len(part) for part in parts)) + head)
    for part in parts:
        writer.write(part)


async def read_frame(reader: asyncio.StreamReader) -> Frame | None:
    """The next frame; None when the other side is gone.

    Raises:
        ValueError: This is not a frame.
    """
    try:
        head_length, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if head_length > _MAX_FACTS or length > MAX_BODY_BYTES:
            raise ValueError("a frame of the bridge is too long")
        facts = json.loads(await reader.readexactly(head_length))
        body = await reader.readexactly(length) if length else b""
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Frame(str(facts.pop("kind")), facts, body)
