"""The envelope of a graph's body: the format version, and required features.

Without torch, so that a server can check the envelope before a worker reads the body.
"""

from __future__ import annotations

from typing import Final

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb

FORMAT_VERSION: Final = 1
# Supported versions and `Graph.required_features`. A change that an older reader would misread gets
# a name here, which the writer sets if it is used.
READ_VERSIONS: Final = frozenset({1})
FEATURES: Final[frozenset[str]] = frozenset()


def check_envelope(graph: pb.Graph) -> None:
    """Refuse a graph that this version of lazyfx would misread.

    Unknown fields alone are accepted: anything a reader must support has a name in
    `required_features`.

    Raises:
        DecodeError: Another format version, or an unknown required feature; the error names the
            field, the feature and the remedy.
    """
    if graph.format_version not in READ_VERSIONS:
        versions = ", ".join(map(str, sorted(READ_VERSIONS)))
        raise DecodeError(
            f"is {graph.format_version}; only version {versions} can be read here: "
            "use the same release of lazyfx on both sides",
            field="format_version",
        )
    unknown = sorted(set(graph.required_features) - FEATURES)
    if unknown:
        names = ", ".join(repr(name[:100]) for name in unknown[:8])
        raise DecodeError(
            f"needs {names}, which this version of lazyfx does not support: upgrade the side that "
            "reads the graph",
            field="required_features",
        )
