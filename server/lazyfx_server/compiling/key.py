"""The key of a compiled module: named components for everything that it depends on."""

from __future__ import annotations

import hashlib
import hmac
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version

import torch

from lazyfx.v1 import compiler_pb2
from lazyfx_server.security import allowed


@dataclass(frozen=True, slots=True)
class ModuleKey:
    """The components of a module's key; each has 32 bytes.

    They are separate so that a miss can be explained by the first new one. `tenant` is the tenant's
    tag.
    """

    tenant: bytes
    graph: bytes
    pipeline: bytes
    values: bytes
    environment: bytes

    @property
    def digest(self) -> bytes:
        """The key, 32 bytes. Components have a fixed length, so joining them is unambiguous."""
        joined = self.graph + self.pipeline + self.values + self.environment
        return hmac.digest(self.tenant, b"lazyfx module key 2" + joined, "sha256")


@lru_cache(maxsize=1)
def environment_digest() -> bytes:
    """Digest of everything else that results depend on: torch, lazyfx, added targets."""
    parts = ["lazyfx", version("lazyfx"), "torch", torch.__version__, platform.python_version()]
    parts += allowed.user_target_names()
    return hashlib.sha256("\0".join(parts).encode()).digest()


def values_digest(values: Sequence[compiler_pb2.ValueBinding]) -> bytes:
    """Digest of the tensor values that a request binds, in any order."""
    rows = sorted((v.graph, v.attribute, v.content.sha256) for v in values)
    digest = hashlib.sha256()
    for graph, attribute, content in rows:
        digest.update(graph.to_bytes(4, "little") + attribute.to_bytes(4, "little") + content)
    return digest.digest()


def artifact_digest(module_key: bytes, kind: int, presentation: bytes) -> bytes:
    """Key of an artifact: the module, the kind, and the caller's names.

    Args:
        module_key: 32 bytes.
        kind: An ArtifactKind.
        presentation: SHA-256 of the serialized presentation.
    """
    joined = module_key + kind.to_bytes(4, "little") + presentation
    return hashlib.sha256(b"lazyfx artifact key 1" + joined).digest()
