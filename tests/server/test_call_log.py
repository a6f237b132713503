"""Log lines of failed calls and of rejected callers."""

from __future__ import annotations

import logging

from harness import connected, refused, request_of_body, wait_until

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.rpc.call_log import RateLimit


def _record(message: str) -> logging.LogRecord:
    return logging.LogRecord("calls", logging.WARNING, __file__, 1, message, ("x",), None)


def test_lines_of_a_kind_are_bounded_and_those_left_out_are_counted() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)
    assert sum(limit.filter(_record("one %s")) for _ in range(1000)) == 100
    assert limit.filter(_record("another %s"))
    now = 1.0
    later = _record("one %s")
    assert limit.filter(later)
    assert later.getMessage() == "one x (900 similar lines were suppressed before)"


def test_a_failed_call_is_logged(launch_for_file) -> None:
    server = launch_for_file("--workers", "1", "--log-level", "debug")
    with connected(server.address) as stub:
        refusal = refused(lambda: stub.Compile(request_of_body(b"\xff\xff")))
        stub.GetServerInfo(pb.GetServerInfoRequest())
    assert refusal.code == "INVALID_ARGUMENT"

    def logged() -> list[str]:
        return [line for line in server.log if "request failed" in line]

    wait_until(logged, "a line about the failed call")
    (line,) = logged()
    for part in ("INFO", "id=", "method=Compile", "code=INVALID_ARGUMENT", "seconds=", "tenant=-"):
        assert part in line
