"""The settings by purpose, as `lazyfx serve --help` shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

GROUPS: Final[Mapping[str, Sequence[str]]] = {
    "addresses": ("config", "listen", "insecure", "metrics_host", "metrics_port", "reflection"),
    "callers and encryption": (
        "server_certificate",
        "server_key",
        "client_ca",
        "client_names",
        "tokens",
        "tenant_secret",
    ),
    "quotas of a tenant": ("quota_requests", "quota_bytes", "quota_compile_seconds"),
    "workers": (
        "workers",
        "worker_threads",
        "worker_memory_bytes",
        "worker_max_jobs",
        "sandbox",
        "crash_refusal_seconds",
    ),
    "store": ("store_path", "store_memory_bytes", "store_disk_bytes"),
    "passes and targets": ("pass_plugins", "pipelines", "operator_modules", "allow_targets"),
    "native artifacts": (
        "native",
        "native_workers",
        "native_unconfined",
        "native_start_method",
        "native_compile_threads",
        "native_timeout",
        "native_memory_bytes",
        "native_cpu_seconds",
    ),
    "bounds of graphs": (
        "max_graph_bytes",
        "max_presentation_bytes",
        "max_nodes",
        "max_edges",
        "max_calls",
        "max_arguments",
        "max_string_bytes",
        "max_rank",
        "max_elements",
        "max_outputs",
        "max_source_bytes",
    ),
    "bounds of jobs": (
        "max_passes",
        "max_option_bytes",
        "max_values",
        "max_rewrites",
        "max_matches",
        "max_match_steps",
        "max_folded_bytes",
        "max_pass_seconds",
        "job_timeout",
        "job_cpu_seconds",
    ),
    "bounds of calls": (
        "max_message_bytes",
        "max_metadata_bytes",
        "max_blob_bytes",
        "max_held_bytes",
        "max_held_bytes_per_tenant",
        "max_staged_bytes",
        "max_staged_bytes_in_all",
        "max_digests",
        "max_queue",
        "max_batch_in_flight",
        "max_streams",
        "max_call_seconds",
        "max_refused_rate",
        "upload_idle_timeout",
        "min_upload_rate",
        "stream_idle_timeout",
    ),
    "signatures": ("server_name", "signing_key", "signature_days"),
    "stopping": ("drain_seconds",),
    "logs": ("log_level", "log_format"),
}
"""Titles and the settings under them."""

OTHER: Final = "other settings"

_GROUP_OF: Final = {name: title for title, names in GROUPS.items() for name in names}


def group_of(setting: str) -> str:
    """The title that a setting is shown under."""
    return _GROUP_OF.get(setting, OTHER)
