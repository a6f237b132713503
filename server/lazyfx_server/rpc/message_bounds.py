"""Bounds on the requests of `lazyfx.v1.GraphCompiler`, field by field.

Every repeated field and every string has one; a test checks all descriptors.
"""

from __future__ import annotations

from collections.abc import Mapping

from lazyfx.shared.native.native_request import MAX_KEPT_BYTES
from lazyfx.shared.native.prefetch_keys import (
    MAX_ARTIFACTS,
    MAX_COMPILE_BYTES,
    MAX_JOBS,
    MAX_NATIVES,
)
from lazyfx_server.compiling.limits.request_checks import (
    MAX_LIST_ITEMS,
    MAX_NAME_BYTES,
    MAX_OPTIONS,
)
from lazyfx_server.security.scanning import FieldBounds, MessageBounds
from lazyfx_server.settings.limits import CallLimits, RequestLimits, UploadLimits
from lazyfx_server.settings.part import Bound

# Fields that are checked in detail when they are read: lengths of digests, names of dtypes.
_SMALL = Bound(1024)
_ANY = Bound(2**31)
_NAME = Bound(MAX_NAME_BYTES, "")
_LIST = Bound(MAX_LIST_ITEMS, "")
_OPTIONS = Bound(MAX_OPTIONS, "")


def request_bounds(
    limits: RequestLimits, calls: CallLimits, uploads: UploadLimits
) -> Mapping[str, MessageBounds]:
    """The bounds on the request of each method, by method name."""
    digest = MessageBounds({1: FieldBounds("sha256", _SMALL), 2: FieldBounds("size_bytes")})
    graph = _graph(limits, body=True)
    option = _option(limits)
    fingerprints = MessageBounds(
        {1: FieldBounds("pipeline", _SMALL), 2: FieldBounds("environment", _SMALL)}
    )
    compile_request = MessageBounds(
        {
            1: FieldBounds("graph_digest", _SMALL, inside=digest),
            2: FieldBounds("graph", inside=graph, mark=True),
            3: _passes(limits, option),
            4: FieldBounds("values", _SMALL, limits.bound("max_values"), _binding(digest)),
            5: FieldBounds("skip_cache_lookup"),
            6: FieldBounds("eager"),
            7: FieldBounds("verify"),
            8: FieldBounds("request_token", _SMALL),
            9: FieldBounds("priority"),
            10: FieldBounds("expected", _SMALL, inside=fingerprints),
        }
    )
    names, native = _presentation(limits), _native(option)
    jobs = FieldBounds("jobs", _SMALL, Bound(MAX_JOBS, ""))
    remembered = _remembered(compile_request)
    return {
        "Compile": compile_request,
        "CompileBatch": MessageBounds(
            {
                1: FieldBounds("request_id"),
                2: FieldBounds("request", inside=compile_request, mark=True),
            }
        ),
        "GetArtifact": MessageBounds(
            {
                1: FieldBounds("module_key", _SMALL),
                2: FieldBounds("kind"),
                3: names,
                4: FieldBounds("offset"),
                5: FieldBounds("constant", _SMALL, inside=digest),
                6: FieldBounds("purpose"),
                7: FieldBounds("native", inside=native),
                8: FieldBounds("priority"),
                9: FieldBounds("kept_kernels", Bound(MAX_KEPT_BYTES, "")),
            }
        ),
        "FindMissingBlobs": MessageBounds(
            {1: FieldBounds("digests", _SMALL, uploads.bound("max_digests"), digest)}
        ),
        "UploadBlobs": MessageBounds(
            {
                1: FieldBounds("digest", _SMALL, inside=digest),
                2: FieldBounds("offset"),
                3: FieldBounds("data", calls.bound("max_message_bytes")),
            }
        ),
        "ListPasses": MessageBounds(),
        "GetServerInfo": MessageBounds(),
        "GetStats": MessageBounds(),
        "Prefetch": MessageBounds(
            {1: jobs, 2: FieldBounds("without_libraries"), 3: FieldBounds("max_bytes")}
        ),
        "RememberJob": MessageBounds(
            {
                1: jobs,
                2: FieldBounds("artifacts", _ANY, Bound(MAX_ARTIFACTS, ""), remembered),
                3: FieldBounds("natives", _ANY, Bound(MAX_NATIVES, ""), native),
                4: FieldBounds("has_ended"),
            }
        ),
    }


def _remembered(compile_request: MessageBounds) -> MessageBounds:
    size = Bound(MAX_COMPILE_BYTES, "")
    return MessageBounds(
        {1: FieldBounds("compile", size, inside=compile_request), 2: FieldBounds("native")}
    )


def _binding(digest: MessageBounds) -> MessageBounds:
    return MessageBounds(
        {
            1: FieldBounds("graph"),
            2: FieldBounds("attribute"),
            3: FieldBounds("content", _SMALL, inside=digest),
        }
    )


def _graph(limits: RequestLimits, *, body: bool) -> MessageBounds:
    bytes_of_body = limits.bound("max_graph_bytes")
    return MessageBounds(
        {
            1: FieldBounds("format_version"),
            2: FieldBounds("required_features", _NAME, Bound(64)),
            3: FieldBounds("body", bytes_of_body, mark=body),
            4: _presentation(limits),
        }
    )


def _presentation(limits: RequestLimits) -> FieldBounds:
    text = limits.bound("max_string_bytes")
    # Node names of all graphs; packed numbers take up to five bytes each.
    names = limits.bound("max_nodes")
    column = Bound(5 * limits.max_nodes, "max_nodes")
    target = MessageBounds({1: FieldBounds("node"), 2: FieldBounds("target", text)})
    graph_names = MessageBounds(
        {
            1: FieldBounds("stems", text, names, total=names),
            2: FieldBounds("stem", column, names),
            3: FieldBounds("suffix", column, names),
            4: FieldBounds("attribute_paths", text, names, total=names),
            5: FieldBounds("placeholder_targets", _ANY, names, target, total=names),
        }
    )
    signature = MessageBounds(
        {
            1: FieldBounds("argument_names", text, names, total=names),
            2: FieldBounds("positional_count"),
        }
    )
    message = MessageBounds(
        {
            1: FieldBounds("graphs", _ANY, names, graph_names),
            2: FieldBounds("device_indices", column, names),
            3: FieldBounds("signature", inside=signature),
            4: FieldBounds("process_groups", text, names),
        }
    )
    size = limits.bound("max_presentation_bytes")
    return FieldBounds("presentation", size, inside=message)


def _option(limits: RequestLimits) -> MessageBounds:
    """Bounds on a PassOption. Values can nest; the reader accepts one level of lists."""
    text = limits.bound("max_option_bytes")
    value = MessageBounds()
    items = MessageBounds({1: FieldBounds("items", text, _LIST, value, total=_LIST)})
    value.fields = {
        1: FieldBounds("boolean"),
        2: FieldBounds("integer"),
        3: FieldBounds("floating"),
        4: FieldBounds("text", text),
        5: FieldBounds("list", text, inside=items),
    }
    return MessageBounds(
        {1: FieldBounds("name", _NAME), 2: FieldBounds("value", text, inside=value)}
    )


def _passes(limits: RequestLimits, option: MessageBounds) -> FieldBounds:
    graph = _graph(limits, body=False)
    guard = MessageBounds(
        {
            1: FieldBounds("input"),
            2: FieldBounds("dtypes", _NAME, Bound(64)),
            3: FieldBounds("rank"),
            4: FieldBounds("shape", Bound(10 * 64), Bound(64)),
        }
    )
    size = limits.bound("max_graph_bytes")
    rewrite = MessageBounds(
        {
            1: FieldBounds("pattern", inside=graph),
            2: FieldBounds("replacement", inside=graph),
            3: FieldBounds("guards", _SMALL, _LIST, guard, total=_LIST),
            4: FieldBounds("at_most"),
            5: FieldBounds("constants", size, _LIST, total=_LIST),
        }
    )
    most = limits.bound("max_passes")
    rewrites = limits.bound("max_rewrites")
    spec = MessageBounds()
    spec.fields = {
        1: FieldBounds("name", _NAME),
        2: FieldBounds("options", _ANY, _OPTIONS, option),
        3: FieldBounds("rewrites", _ANY, rewrites, rewrite, total=rewrites),
        4: FieldBounds("passes", _ANY, most, spec, total=most),
    }
    return FieldBounds("passes", _ANY, most, spec)


def _native(option: MessageBounds) -> MessageBounds:
    target = MessageBounds(
        {
            1: FieldBounds("torch", _SMALL),
            2: FieldBounds("torch_key", _SMALL),
            3: FieldBounds("python", _SMALL),
            4: FieldBounds("vector_isa", _SMALL),
            5: FieldBounds("cpu_flags", _NAME, _LIST),
            6: FieldBounds("accelerator", _SMALL),
        }
    )
    return MessageBounds(
        {
            1: FieldBounds("target", inside=target),
            2: FieldBounds("states", _ANY, _LIST, option),
            3: FieldBounds("settings", _ANY, _LIST, option),
            4: FieldBounds("configuration", _SMALL),
            5: FieldBounds("setting_digests", Bound(65_536)),
            6: FieldBounds("equal_blocks_once"),
        }
    )
