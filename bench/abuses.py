"""Requests that once held a server, as bytes: method, message, and the field at fault."""

from __future__ import annotations

from collections.abc import Callable

MB = 2**20


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def inside(field: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return varint(field << 3 | 2) + varint(len(content)) + content


PASS = 3
ABUSES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "31 million empty passes": ("Compile", lambda: b"\x1a\x00" * (31 * MB), "passes"),
    "a pass with a name of 60 MB": (
        "Compile", lambda: inside(PASS, inside(1, b"a" * (60 * MB))), "passes[0].name"
    ),
    "an option with a name of 60 MB": (
        "Compile", lambda: inside(PASS, inside(2, inside(1, b"a" * (60 * MB)))),
        "passes[0].options[0].name",
    ),
    "an option with a text of 60 MB": (
        "Compile", lambda: inside(PASS, inside(2, inside(2, inside(4, b"a" * (60 * MB))))),
        "passes[0].options[0].value",
    ),
    "empty options": (
        "Compile", lambda: inside(PASS, b"\x12\x00" * (30 * MB)), "passes[0].options"
    ),
    "an empty list in a list, often": (
        "Compile", lambda: inside(PASS, inside(2, inside(2, inside(5, b"\x0a\x00" * 30_000)))),
        "passes[0].options[0].value.list.items",
    ),
    "empty rewrites": (
        "Compile", lambda: inside(PASS, b"\x1a\x00" * (30 * MB)), "passes[0].rewrites"
    ),
    "passes in passes, all empty": (
        "Compile", lambda: inside(PASS, b"\x22\x00" * (30 * MB)), "passes[0].passes"
    ),
    "empty guards": (
        "Compile", lambda: inside(PASS, inside(3, b"\x1a\x00" * MB)), "passes[0].rewrites[0].guards"
    ),
    "1.6 million values": (
        "Compile", lambda: inside(4, inside(3, inside(1, bytes(32)))) * 1_600_000, "values"
    ),
    "31 million empty values": ("Compile", lambda: b"\x22\x00" * (31 * MB), "values"),
    "empty names": (
        "Compile", lambda: inside(2, inside(4, inside(1, b"\x0a\x00" * (8 * MB - 100)))),
        "graph.presentation.graphs[0].stems",
    ),
    "names of 17 MB": (
        "Compile", lambda: inside(2, inside(4, inside(1, inside(1, b"a" * (17 * MB))))),
        "graph.presentation",
    ),
    "required features": (
        "Compile", lambda: inside(2, b"\x12\x00" * MB), "graph.required_features"
    ),
    "a token of 60 MB": ("Compile", lambda: inside(8, bytes(60 * MB)), "request_token"),
    "a digest of 60 MB": ("Compile", lambda: inside(1, inside(1, bytes(60 * MB))), "graph_digest"),
    "100,000 digests": (
        "FindMissingBlobs", lambda: inside(1, inside(1, bytes(32))) * 100_000, "digests"
    ),
    "30 million empty digests": ("FindMissingBlobs", lambda: b"\x0a\x00" * (30 * MB), "digests"),
    "names for an artifact": (
        "GetArtifact", lambda: inside(3, inside(4, b"a" * (17 * MB))), "presentation"
    ),
    "native settings": ("GetArtifact", lambda: inside(7, b"\x1a\x00" * MB), "native.settings"),
    "processor flags": (
        "GetArtifact", lambda: inside(7, inside(1, b"\x2a\x00" * MB)), "native.target.cpu_flags"
    ),
    "an empty request that is not": ("GetStats", lambda: b"\x0a\x00" * MB, ""),
    "unknown bytes": ("GetServerInfo", lambda: inside(9, bytes(60 * MB)), ""),
    "a doubled graph": ("Compile", lambda: inside(2, b"") * 2, "graph"),
    "a message cut short": ("Compile", lambda: b"\x1a\x7f", ""),
    "a number without an end": ("Compile", lambda: b"\x28" + b"\xff" * 20, ""),
    "a group": ("Compile", lambda: b"\x1b\x1c", ""),
}  # fmt: skip
