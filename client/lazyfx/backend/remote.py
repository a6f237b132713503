"""Asks the server to compile one graph, and turns the result into a callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import sympy
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.artifacts.kernel_files import kept_kernels, kernel_folder, with_kept_kernels
from lazyfx.artifacts.native_loading import load
from lazyfx.backend.dynamo_graphs import FlatGraph, flatten
from lazyfx.backend.fallback_report import EqualBlocks, KernelCounts
from lazyfx.backend.group_names import register_names, with_names
from lazyfx.backend.options import BackendOptions
from lazyfx.backend.sessions import Session
from lazyfx.blocking_module import RemoteModule
from lazyfx.capture import remembering
from lazyfx.errors import ArtifactError, IncompatibleError
from lazyfx.shared.answers.downloads import OnProgress
from lazyfx.shared.native import shape_guards
from lazyfx.shared.native.machine import mismatch
from lazyfx.shared.native.native_answers import read_artifact
from lazyfx.shared.native.native_request import native_request
from lazyfx.shared.native.text_tokens import texts_of
from lazyfx.v1 import compiler_pb2 as pb

Runnable: TypeAlias = Callable[..., Any]
"""What dynamo calls in place of a graph."""


@dataclass(frozen=True, slots=True)
class GraphRequest:
    """The request for one graph; created in the thread in which dynamo compiles.

    Attributes:
        graph: The graph that is sent.
        native: Where the artifact will run; None to run the rebuilt graph.
        flat: The graph with its tensors as inputs, for a native artifact.
        options: The options of the torch.compile call.
    """

    graph: GraphModule
    native: pb.NativeRequest | None
    flat: FlatGraph | None
    options: BackendOptions

    def digest(self) -> str:
        """Hex digest of the graph.

        Raises:
            UnsupportedGraphError: The format does not support it; names the node.
        """
        return remembering.encode(self.graph).digest.hex()


@dataclass(frozen=True, slots=True)
class GraphResult:
    """The result from the server.

    Attributes:
        open: Returns a function that takes the graph's inputs and returns its outputs.
        digest: Hex digest of the graph.
        cache: "hit", "miss" or "joined".
        conditions: Conditions on symbolic sizes and floats under which it may be called.
        env: The ShapeEnv of the symbols in these conditions.
        fixed_inputs: Inputs whose floats must be constants before anything can be compiled.
        kernels: What the server compiled; None if it had the artifact.
        equal_blocks: Groups of equal blocks that were compiled once: calls and nodes of each.
        compiled: The server reported a compile while the answer was awaited.
        prefetched: The artifact arrived before it was asked for.
    """

    open: Callable[[], Runnable]
    digest: str
    cache: str
    conditions: tuple[sympy.Basic, ...] = ()
    env: ShapeEnv | None = None
    fixed_inputs: tuple[int, ...] = ()
    kernels: KernelCounts | None = None
    equal_blocks: tuple[EqualBlocks, ...] = ()
    compiled: bool = False
    prefetched: bool = False

    def enforce(self) -> None:
        """Add the conditions as guards to the frame that dynamo is compiling.

        Raises:
            ArtifactError: The sizes of this call violate one.
        """
        if self.env is not None:
            shape_guards.enforce(self.conditions, self.env)


def make_request(
    module: GraphModule, inputs: Sequence[Any], options: BackendOptions
) -> GraphRequest:
    """Create the request from the state of this thread: graph, grad mode, autocast, settings.

    Raises:
        UnsupportedGraphError: The graph cannot be compiled elsewhere; names the node or input.
        IncompatibleError: The graph is on a GPU that artifacts cannot target.
        LazyfxError: A setting of Inductor cannot be sent.
    """
    if options.compile == "eager":
        return GraphRequest(module, None, None, options)
    flat = flatten(module, inputs)
    if elsewhere := [d for d in flat.devices if d.type == "cuda" and d.index]:
        # Inductor writes the device index into its code, and the server compiles for GPU 0.
        raise IncompatibleError(
            f"the graph is on {elsewhere[0]}, but artifacts target cuda:0; let each rank see its "
            "own GPU as cuda:0 (CUDA_VISIBLE_DEVICES)"
        )
    request = native_request(
        flat.devices,
        options.mode,
        options.inductor,
        equal_blocks_once=options.equal_blocks == "once",
    )
    return GraphRequest(flat.module, request, flat, options)


def ask(
    session: Session, graph_request: GraphRequest, on_progress: OnProgress | None = None
) -> GraphResult:
    """Have one graph compiled.

    Raises:
        UnsupportedGraphError: The format does not support the graph; names the node.
        UntrustedServerError: Artifacts of this server would not be opened; nothing was sent.
        IncompatibleError: Artifacts of this server do not run here; nothing was sent.
        ServiceError: The server refused, failed, or is unavailable.
        ArtifactError: The answer does not match the request.
    """
    options, request = graph_request.options, graph_request.native
    if request is None or graph_request.flat is None:
        remote = _compile(session, graph_request)
        rebuilt = remote.graph_module()
        return GraphResult(lambda: rebuilt.forward, remote.digest, remote.cache.status)
    encoded = remembering.encode(graph_request.graph)
    groups = encoded.presentation.process_groups
    register_names(groups, has_passes=bool(options.passes))
    asked = _asked(session, graph_request)
    answer = None if asked is None else _taken(session, asked, request)
    session.require_trusted()
    _require_compatible(session, request)
    if answer is None:
        answer = _fetched(session, graph_request, request, on_progress)
    if asked is not None:
        session.warm_start.add(asked, request, is_new=not answer.prefetched)
    bundle, folder, texts = answer.bundle, kernel_folder(session.signed), texts_of(encoded.body)
    symbols = _symbols(graph_request.flat, bundle)
    return GraphResult(
        open=lambda: _with_lifted(
            with_names(load(bundle, texts, folder), groups), graph_request.flat
        ),
        digest=encoded.digest.hex(),
        cache=answer.cache,
        conditions=tuple(shape_guards.read_guards(bundle.guards, symbols)),
        env=shape_guards.shape_env(graph_request.flat.inputs),
        fixed_inputs=tuple(bundle.fixed_inputs),
        kernels=_kernels(answer.last),
        equal_blocks=tuple(EqualBlocks(b.calls, b.nodes) for b in bundle.equal_blocks),
        compiled=answer.last.ByteSize() > 0,
        prefetched=answer.prefetched,
    )


@dataclass(frozen=True, slots=True)
class _NativeAnswer:
    """A native artifact that was verified and fits the request.

    Attributes:
        bundle: The artifact, with all its libraries.
        cache: "hit", "miss" or "joined".
        last: The server's last report of progress; empty if there was none.
        prefetched: It arrived before it was asked for.
    """

    bundle: pb.NativeBundle
    cache: str
    last: pb.ArtifactProgress = field(default_factory=pb.ArtifactProgress)
    prefetched: bool = False


def _compile(session: Session, graph_request: GraphRequest) -> RemoteModule:
    options = graph_request.options
    return session.client.compile(
        graph_request.graph,
        options.passes,
        timeout=options.timeout,
        send_values=options.send_values,
        priority=options.priority,
    )


def _fetched(
    session: Session,
    graph_request: GraphRequest,
    request: pb.NativeRequest,
    on_progress: OnProgress | None,
) -> _NativeAnswer:
    """Have the graph compiled, and fetch the artifact."""
    remote = _compile(session, graph_request)
    last = pb.ArtifactProgress()

    def note(progress: pb.ArtifactProgress) -> None:
        last.CopyFrom(progress)
        if on_progress is not None:
            on_progress(progress)

    timeout = graph_request.options.timeout
    fetch = partial(remote.native, request, timeout=timeout, on_progress=note)
    data = _with_kept_kernels(session, fetch)
    session.signed = remote.provenance("inductor")
    bundle = read_artifact(pb.NativeBundle, data, request)
    return _NativeAnswer(bundle, remote.cache.status, last)


def _asked(session: Session, graph_request: GraphRequest) -> pb.CompileRequest | None:
    """Start the warm start, and return what a compile would ask for; None if it is turned off."""
    options = graph_request.options
    if not options.prefetch:
        return None
    session.warm_start.start()
    return session.client.asked_of(
        graph_request.graph,
        options.passes,
        priority=options.priority,
        send_values=options.send_values,
    )


def _taken(
    session: Session, asked: pb.CompileRequest, request: pb.NativeRequest
) -> _NativeAnswer | None:
    """The artifact if it has arrived before; None if it has not, or cannot be used here."""
    early = session.warm_start.take(asked, request)
    if early is None:
        return None
    session.signed = early.provenance
    data = with_kept_kernels(early.data, kernel_folder(session.signed))
    if data is None:
        return None
    try:
        bundle = read_artifact(pb.NativeBundle, data, request)
    except ArtifactError:  # for another machine
        return None
    return _NativeAnswer(bundle, early.cache, prefetched=True)


def _with_kept_kernels(session: Session, fetch: Callable[..., bytes]) -> bytes:
    """Fetch a native artifact, but for the libraries that are here from the same server.

    Only a server that has signed an artifact for this session is told which of its own these are.
    """
    folder = kernel_folder(session.signed)
    if folder is None or not (kept := kept_kernels(folder)):
        return fetch()
    # None if one of them was removed in the meantime.
    return with_kept_kernels(fetch(kept_kernels=kept), folder) or fetch()


def _kernels(last: pb.ArtifactProgress) -> KernelCounts | None:
    """What the server's last report says of kernels; None if there are none."""
    known = min(last.known_kernels, last.kernels)
    return KernelCounts(known, last.kernels - known) if last.kernels else None


def _symbols(flat: FlatGraph, bundle: pb.NativeBundle) -> list[sympy.Symbol]:
    """The symbols in the artifact's guards, in order.

    Raises:
        ArtifactError: A guard refers to a float of an input without one.
    """
    floats = shape_guards.float_symbols(flat.inputs)
    if unknown := [number for number in bundle.float_inputs if number not in floats]:
        raise ArtifactError(f"the artifact's guards refer to a float in input {unknown[0]}")
    return [
        *shape_guards.input_symbols(flat.inputs),
        *(floats[number] for number in bundle.float_inputs),
    ]


def _require_compatible(session: Session, request: pb.NativeRequest) -> None:
    targets = session.native_targets()
    if not targets:
        raise IncompatibleError(
            "the server builds no native artifacts; start it with --native, or use the option "
            "compile='eager'"
        )
    reasons = [mismatch(target, request.target) for target in targets]
    if all(reasons):
        # The first is of the kind of worker that the server prefers; it names all when asked.
        raise IncompatibleError(f"artifacts from this server would not run here: {reasons[0]}")


def _with_lifted(call: Runnable, flat: FlatGraph | None) -> Runnable:
    lifted = flat.lifted if flat is not None else ()
    if not lifted:
        return call
    return lambda *inputs: call(*inputs, *lifted)
