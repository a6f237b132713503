"""Messages of earlier releases and other torch versions are readable, and keep their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import captures
import make
import pytest
import torch
from google.protobuf.json_format import MessageToDict
from torch.fx._lazy_graph_module import _LazyGraphModule

import lazyfx
from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.shared.format_version import READ_VERSIONS
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

HERE = Path(__file__).resolve().parent
FOLDERS = sorted(HERE.glob("torch-*"))
FILES = sorted(HERE.glob("torch-*/*.lazyfx"))
MESSAGES = sorted((HERE / "messages").glob("*.binpb"))


def label(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


def recorded(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path.parent / "digests.json").read_text())[path.stem]
    return found


def test_there_are_files_of_every_supported_torch() -> None:
    assert [folder.name for folder in FOLDERS] == ["torch-2.11", "torch-2.12", "torch-2.13"]
    assert len(FILES) >= 36
    assert len(MESSAGES) == 4
    for folder in FOLDERS:
        names = {path.stem for path in folder.glob("*.lazyfx")}
        assert names == set(json.loads((folder / "digests.json").read_text()))


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_graph_is_read_and_has_its_digest(path: Path) -> None:
    saved = lazyfx.load_graph(path)
    assert saved.digest == recorded(path)["digest"]
    module = wire.decode(saved.body, saved.presentation, module_class=_LazyGraphModule)
    again = wire.encode(module)
    assert again.digest.hex() == recorded(path)["digest"]
    assert again.nodes == recorded(path)["nodes"]
    assert again.presentation.graphs == saved.presentation.graphs


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_graph_of_another_torch_is_the_same_graph_where_the_capture_was(path: Path) -> None:
    # Hand-made graphs do not depend on how a torch captures: their digests are equal.
    if path.stem in ("literals", "constants"):
        digests = {recorded(folder / path.name)["digest"] for folder in FOLDERS}
        assert digests == {recorded(path)["digest"]}
    # A file explains itself against its twin of this torch, whatever the capture changed.
    found = lazyfx.explain(path, FOLDERS[-1] / path.name)
    assert found.same == (not found.differences)


def test_hand_made_graphs_still_have_their_recorded_digests() -> None:
    for name, module in (("literals", make.literals()), ("constants", make.constants())):
        assert lazyfx.digest(module) == recorded(FOLDERS[0] / f"{name}.lazyfx")["digest"]


def test_a_capture_of_this_torch_has_the_digest_of_its_file() -> None:
    folder = HERE / make.FOLDER
    torch.manual_seed(0)
    (capture,) = captures.symbolic(make.Small().eval(), {"x": torch.randn(2, 3, 8, 8)})
    assert lazyfx.digest(capture.module) == recorded(folder / "symbolic.lazyfx")["digest"]


@pytest.mark.parametrize("path", MESSAGES, ids=lambda path: path.stem)
def test_a_message_keeps_its_meaning(path: Path) -> None:
    message = getattr(pb, path.stem).FromString(path.read_bytes())
    assert MessageToDict(message) == json.loads(path.with_suffix(".json").read_text())
    assert message.SerializeToString(deterministic=True) == path.read_bytes()


def envelope(**changes: Any) -> graph_pb2.Graph:
    saved = lazyfx.load_graph(FOLDERS[-1] / "symbolic.lazyfx")
    message = graph_pb2.Graph(format_version=1, body=saved.body, presentation=saved.presentation)
    for name, value in changes.items():
        if isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


# Field 500, length-delimited, "later": what a later version might add.
LATER = b"\xa2\x1f\x05later"


def test_unknown_fields_outside_of_the_body_are_tolerated(tmp_path: Path) -> None:
    message = envelope()
    digest = hashlib.sha256(message.body).hexdigest()
    message.presentation.MergeFromString(LATER)
    message.presentation.graphs[0].MergeFromString(LATER)
    path = tmp_path / "later.lazyfx"
    path.write_bytes(message.SerializeToString() + LATER)
    saved = lazyfx.load_graph(path)
    assert saved.digest == digest
    assert len(saved.graph_module().graph.nodes) > 5


def test_unknown_fields_inside_of_the_body_are_refused(tmp_path: Path) -> None:
    message = envelope()
    path = tmp_path / "later.lazyfx"
    path.write_bytes(envelope(body=message.body + LATER).SerializeToString())
    with pytest.raises(DecodeError, match="unknown"):
        lazyfx.load_graph(path)


@pytest.mark.parametrize(
    ("changes", "field", "named", "remedy"),
    [
        ({"required_features": ["time_travel"]}, "required_features", "time_travel", "upgrade"),
        ({"format_version": 2}, "format_version", "2", "same release"),
        ({"format_version": 0}, "format_version", "0", "same release"),
    ],
)
def test_unknown_content_that_matters_is_refused(
    tmp_path: Path, changes: dict[str, Any], field: str, named: str, remedy: str
) -> None:
    path = tmp_path / "later.lazyfx"
    path.write_bytes(envelope(**changes).SerializeToString())
    with pytest.raises(DecodeError) as caught:
        lazyfx.load_graph(path)
    assert caught.value.field == field
    assert named in str(caught.value)
    assert remedy in str(caught.value)


def test_every_version_that_is_read_has_files() -> None:
    versions = {graph_pb2.Graph.FromString(path.read_bytes()).format_version for path in FILES}
    assert versions == READ_VERSIONS
