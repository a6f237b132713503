"""Bounds and quotas on requests, jobs and tenants."""

from __future__ import annotations

from pydantic import ByteSize, Field

from lazyfx_server.settings.part import GIB, MIB, Limits, Part


class GraphLimits(Limits):
    """Bounds on one graph."""

    group = "bounds of graphs"

    max_graph_bytes: ByteSize = ByteSize(32 * MIB)
    """Maximum size of a graph body."""

    max_presentation_bytes: ByteSize = ByteSize(16 * MIB)
    """Maximum size of the names that accompany a graph."""

    max_nodes: int = Field(default=200_000, ge=1)
    """Maximum number of nodes of a graph, nested graphs included."""

    max_edges: int = Field(default=2_000_000, ge=1)
    """Maximum number of uses of nodes by other nodes in a graph, nested graphs included."""

    max_calls: int = Field(default=200_000, ge=1)
    """Maximum number of distinct calls (target and literal arguments) of a graph."""

    max_arguments: int = Field(default=100_000, ge=1)
    """Maximum number of arguments of one call, including those inside lists and dicts."""

    max_string_bytes: ByteSize = ByteSize(MIB)
    """Maximum length of a string in a graph, in characters."""

    max_rank: int = Field(default=64, ge=0, le=64)
    """Maximum number of dimensions of a tensor."""

    max_elements: int = Field(default=2**48, ge=1)
    """Maximum number of elements of a described tensor, whether or not its values exist."""

    max_outputs: int = Field(default=10_000, ge=1)
    """Maximum number of outputs of one node."""

    max_source_bytes: ByteSize = ByteSize(128 * MIB)
    """Maximum length of the Python source of a graph, as estimated before it is generated, with
    names and literals written out at each use."""


DEFAULT_GRAPH_LIMITS = GraphLimits()


class PassLimits(GraphLimits):
    """Bounds on passes: those on graphs, and those on what passes do to them."""

    group = "bounds of jobs"

    max_matches: int = Field(default=10_000, ge=1)
    """Maximum number of matches that replace_pattern may rewrite in one request."""

    max_match_steps: int = Field(default=200_000_000, ge=1)
    """Maximum number of steps of the pattern search of one replace_pattern: candidate nodes times
    pairs of pattern nodes. Computed before the search starts."""

    max_folded_bytes: ByteSize = ByteSize(256 * MIB)
    """Maximum bytes of constants that constant folding may create in one request."""

    max_pass_seconds: float = Field(default=60.0, ge=0)
    """Seconds after which a pass is stopped and the request fails; 0 for no limit but
    job_timeout."""


class RequestLimits(PassLimits):
    """Bounds on one compile request, and on its graph and passes."""

    group = "bounds of jobs"

    max_passes: int = Field(default=64, ge=0)
    """Maximum number of passes of one request."""

    max_option_bytes: ByteSize = ByteSize(64 * 1024)
    """Maximum size of the value of a pass option; the items of a list count together."""

    max_values: int = Field(default=16_384, ge=0)
    """Maximum number of tensors whose values one request may bind."""

    max_rewrites: int = Field(default=256, ge=0)
    """Maximum number of (pattern, replacement) pairs of one request."""


class WorkerLimits(Limits):
    """Bounds on the process that runs one job."""

    group = "bounds of jobs"

    job_timeout: float = Field(default=120.0, gt=0)
    """Seconds after which a job is killed."""

    job_cpu_seconds: float = Field(default=600.0, gt=0)
    """CPU seconds, over all threads, after which a job is killed."""

    worker_memory_bytes: ByteSize = ByteSize(8 * GIB)
    """Address space that a worker may allocate beyond what it starts with."""


class CallLimits(Limits):
    """Bounds on calls, connections, and data in memory."""

    group = "bounds of calls"

    max_message_bytes: ByteSize = ByteSize(4 * MIB)
    """Maximum size of a gRPC message. gRPC copies messages on the event loop, which delays other
    calls by 2 ms per MiB. Larger graphs and tensors are sent in chunks."""

    max_metadata_bytes: ByteSize = ByteSize(16 * 1024)
    """Maximum size of the metadata (headers) of a call."""

    max_held_bytes: ByteSize = ByteSize(512 * MIB)
    """Maximum bytes of requests in memory, queued or running. Requests beyond it are refused with
    RESOURCE_EXHAUSTED. Small requests are not counted."""

    max_held_bytes_per_tenant: ByteSize = ByteSize(256 * MIB)
    """The same for one tenant. On a server that does not identify callers, all callers are one
    tenant."""

    max_queue: int = Field(default=1024, ge=0)
    """Maximum number of jobs that wait for a worker; more are refused with RESOURCE_EXHAUSTED."""

    max_queue_seconds: float = Field(default=3600.0, gt=0)
    """Maximum estimated seconds in which the workers of one kind would finish the jobs that wait
    for them; more are refused with RESOURCE_EXHAUSTED. Estimates are learned from earlier jobs."""

    max_batch_in_flight: int = Field(default=64, ge=1)
    """Requests of one CompileBatch stream to process at the same time."""

    max_streams: int = Field(default=1000, ge=1)
    """Maximum number of concurrent calls per connection; more wait in the client."""

    max_call_seconds: float = Field(default=3600.0, gt=0)
    """Maximum duration of any call in seconds, even if its caller set no deadline."""

    max_refused_rate: int = Field(default=2**20, ge=0)
    """Bytes per second of malformed or oversized requests above which the server delays its answers
    to a connection, by at most 5 s. The first 64 MiB cause no delay; 0 for no delays at all."""

    stream_idle_timeout: float = Field(default=300.0, gt=0)
    """Seconds after which a batch stream without requests in flight is ended."""


class UploadLimits(Limits):
    """Bounds on uploads of tensors, and on requests for them."""

    group = "bounds of calls"

    max_digests: int = Field(default=1024, ge=1)
    """Maximum number of blobs in one FindMissingBlobs request."""

    max_blob_bytes: ByteSize = ByteSize(4 * GIB)
    """Maximum size of a tensor sent with UploadBlobs."""

    max_staged_bytes: ByteSize = ByteSize(8 * GIB)
    """Maximum bytes of unfinished uploads of one tenant."""

    max_staged_bytes_in_all: ByteSize = ByteSize(16 * GIB)
    """Maximum bytes of unfinished uploads of all tenants together."""

    upload_idle_timeout: float = Field(default=30.0, gt=0)
    """Seconds without a chunk after which an upload is ended."""

    min_upload_rate: int = Field(default=1024, ge=0)
    """Minimum rate of an upload in bytes per second, measured after the first upload_idle_timeout
    seconds."""


class QuotaLimits(Part):
    """What one tenant may use over time; None means unlimited."""

    group = "quotas of a tenant"

    quota_requests: int | None = Field(default=None, ge=1)
    """Requests per minute that one tenant may make; each request of a batch counts. Default: no
    quota."""

    quota_bytes: ByteSize | None = None
    """Bytes per hour that one tenant may send. Default: no quota."""

    quota_compile_seconds: float | None = Field(default=None, gt=0)
    """Seconds of worker time per hour that one tenant may use. Default: no quota."""
