"""The values that metric labels take. Anything else is counted as "other"."""

from __future__ import annotations

from typing import Final

OTHER: Final = "other"
METHODS: Final = (
    "Compile",
    "CompileBatch",
    "GetArtifact",
    "FindMissingBlobs",
    "UploadBlobs",
    "ListPasses",
    "GetServerInfo",
    "GetStats",
)
CODES: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
MISS_REASONS: Final = (
    "new_graph",
    "new_pipeline",
    "new_values",
    "evicted",
    "corrupt",
    "skipped",
    "uncacheable",
    "new_environment",
)
TRIGGERS: Final = (
    "code",
    "pickle",
    "package",
    "picture",
    "call",
    "torchscript",
    "exported_program",
    "eager",
)
ARTIFACT_KINDS: Final = (
    "code",
    "pickle",
    "package",
    "graph",
    "picture",
    "constant",
    "source",
    "torchscript",
    "inductor",
    "aot_inductor",
    "exported_program",
)
SANDBOX_LAYERS: Final = ("privileges", "limits", "landlock", "seccomp")
RESTART_REASONS: Final = ("crash", "timeout", "recycled", "cancelled")
JOBS: Final = ("compile", "render", "native")
STAGES: Final = ("compile", "render")
STORE_OPERATIONS: Final = ("get", "put", "contains", "delete", "quarantine")
OVERHEAD_STAGES: Final = ("codec", "key", "store", "queue")
