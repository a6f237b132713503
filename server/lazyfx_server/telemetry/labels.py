"""The values of metric labels. Anything else is counted as "other"."""

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
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "UNAVAILABLE",
    "UNAUTHENTICATED",
)
MISS_REASONS: Final = (
    "new_graph",
    "new_pipeline",
    "new_values",
    "evicted",
    "corrupt",
    "skipped",
    "new_environment",
)
TRIGGERS: Final = (
    "code",
    "pickle",
    "package",
    "call",
    "torchscript",
    "exported_program",
    "eager",
)
SANDBOX_LAYERS: Final = ("privileges", "limits", "landlock", "seccomp")
RESTART_REASONS: Final = ("crash", "timeout", "recycled", "cancelled")
JOBS: Final = ("compile", "render", "native", "check")
POOLS: Final = ("pass", "native")
PRIORITIES: Final = ("interactive", "batch", "prewarm")
REFUSAL_REASONS: Final = ("queue", "deadline", "memory")
STAGES: Final = ("compile", "render", "kernel")
KERNEL_SOURCES: Final = ("found", "joined", "compiled", "failed")
FLEET_OUTCOMES: Final = ("led", "joined", "taken_over", "hedged", "unleased", "outrun")
TIERS: Final = ("memory", "disk", "redis", "s3")
REMOTE_TIERS: Final = ("redis", "s3")
STORE_OPERATIONS: Final = ("get", "put", "contains", "delete")
OVERHEAD_STAGES: Final = ("codec", "key", "queue")
UPSTREAM_OUTCOMES: Final = (
    "answered",
    "refused",
    "left",
    "values",
    "unreachable",
    "denied",
    "incompatible",
    "failed",
    "invalid",
)
