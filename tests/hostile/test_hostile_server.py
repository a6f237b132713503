"""Each attack by a hostile server ends in an error of lazyfx."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hostile_server import HostileServer, Lies, hostile_server
from roles import CONTROL, DCE, FOLD, ROLES, Net, asks, net, statement

import lazyfx
from lazyfx import errors
from lazyfx.v1 import compiler_pb2 as pb

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def liar() -> Iterator[HostileServer]:
    with hostile_server() as server:
        yield server


def touch(client: lazyfx.Client, what: str, folder: Path) -> None:
    """Do what meets an attack."""
    if what in ("info", "passes", "stats"):
        {"info": client.server_info, "passes": client.passes, "stats": client.stats}[what]()
        return
    if what == "batch":
        for _, result in client.compile_many([(net(), [DCE])]):
            if isinstance(result, errors.LazyfxError):
                raise result
        return
    timeout = 1.0 if what == "slow" else None
    module = client.compile(net(), [FOLD if what == "fold" else DCE], timeout=timeout)
    if what == "graph":
        module.graph_module()
    elif what == "pickle":
        module.save_pickle(folder / "file")
    elif what == "package":
        module.save_package(folder / "file")
    elif what == "source":
        module.source()
    elif what == "picture":
        module.picture()
    elif what == "code":
        _ = module.code


WHAT = (
    "compile",
    "batch",
    "graph",
    "source",
    "pickle",
    "package",
    "picture",
    "code",
    "info",
    "passes",
)


def test_an_honest_server_is_accepted(liar: HostileServer, tmp_path: Path) -> None:
    liar.reset()
    with lazyfx.connect(liar.address) as client:
        for what in WHAT:
            touch(client, what, tmp_path)
        x, y, graph = torch.ones(2, 4), torch.ones(2, 2), net()
        assert torch.equal(client.compile(graph, [DCE])(x, y), graph(x, y))
        assert client.refused == {}


@pytest.mark.parametrize("role", ROLES)
def test_a_role(liar: HostileServer, role: str, tmp_path: Path) -> None:
    liar.reset()
    liar.lies, what = ROLES[role]
    before = set(sys.modules)
    with lazyfx.connect(liar.address, timeout=20.0) as client:
        with pytest.raises(errors.LazyfxError) as caught:
            touch(client, what, tmp_path)
        refused = client.refused
    text = str(caught.value)
    assert text.isprintable() or "\n" in text, text
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\r"} & set(text)
    assert len(text) < 10_000
    assert liar.uploaded == 0
    assert list(tmp_path.iterdir()) == []
    assert not {m for m in set(sys.modules) - before if m.startswith(("liar", "fx-generated"))}
    if isinstance(caught.value, errors.ServiceError):
        assert (caught.value.retry_after or 0.0) <= 600
    elif what not in ("info", "passes", "stats"):
        assert refused == {type(caught.value).__name__: 1}


def test_values_for_passes_that_read_none_are_refused_by_name_and_counted(
    liar: HostileServer,
) -> None:
    liar.reset()
    liar.lies = asks("values/0/0")
    with lazyfx.connect(liar.address) as client:
        for _ in range(2):
            with pytest.raises(errors.ValuesRefusedError, match="send_values=True"):
                client.compile(net(), [DCE])
        assert client.refused == {"ValuesRefusedError": 2}
    assert liar.uploaded == 0


@pytest.mark.parametrize(
    ("passes", "allowed"),
    [
        (FOLD, {}),
        (f"until_stable({FOLD},{DCE})", {}),
        ("inference", {}),
        ("a_plugin", {"send_values": True}),
    ],
)
def test_values_go_where_they_may(
    liar: HostileServer, passes: str, allowed: dict[str, bool]
) -> None:
    liar.reset()
    liar.lies = Lies(before_compile=_ask_once())
    with lazyfx.connect(liar.address) as client:
        client.compile(net(), passes, **allowed)
    assert liar.uploaded == Net().scale.nbytes


def _ask_once():  # type: ignore[no-untyped-def]
    def ask(request: pb.CompileRequest, context: object) -> None:
        if not request.values:
            asks("values/0/0").before_compile(request, context)

    return ask


@pytest.mark.parametrize("passes", ["default", "training", "a_plugin", "until_stable(a_plugin)"])
def test_values_do_not_go_elsewhere(liar: HostileServer, passes: str) -> None:
    liar.reset()
    liar.lies = asks("values/0/0")
    with lazyfx.connect(liar.address) as client, pytest.raises(errors.ValuesRefusedError):
        client.compile(net(), passes)
    assert liar.uploaded == 0


def test_text_of_a_server_is_shown_without_control_characters(liar: HostileServer) -> None:
    liar.reset()

    def described(message: object) -> object:
        if isinstance(message, pb.GetServerInfoResponse):
            message.torch_version = CONTROL
            message.sandbox.layers.append(CONTROL)
        elif isinstance(message, pb.ListPassesResponse):
            message.passes.add(name=CONTROL, summary=CONTROL).options.add(name=CONTROL)
            message.pipelines.add(name=CONTROL, spelling=CONTROL)
        return message

    def response(message: pb.CompileResponse) -> pb.CompileResponse:
        message.cache.explanation = message.report.pipeline = CONTROL
        message.cache.status = 99  # type: ignore[assignment]
        row = message.report.passes.add(name=CONTROL, spelling=CONTROL, note=CONTROL)
        row.forced.add(trigger=CONTROL, where=CONTROL)
        row.data.update({CONTROL: [CONTROL]})
        return message

    def code(kind: int, data: bytes) -> bytes:
        return data + CONTROL.encode() if kind == pb.ARTIFACT_KIND_CODE else data

    lies = statement(builder=CONTROL, pipeline=CONTROL)
    lies.self_description, lies.response, lies.artifact = described, response, code
    liar.lies = lies
    with lazyfx.connect(liar.address) as client:
        module = client.compile(net(), [DCE])
        shown = [
            client.server_info(), client.passes(), client.pipelines(), module.report,
            module.cache, module, module.provenance("code"),
        ]  # fmt: skip
        text = "".join(map(repr, shown)) + module.code + str(module.report)
        text += module.report.pipeline + module.cache.explanation
        text += client.server_info().torch_version + module.report.passes[0].note
    assert not {"\x1b", "\x07", "\u202e", "\x9b", "\r"} & set(text)
    assert "\\x1b" in text
