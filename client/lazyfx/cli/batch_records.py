"""Records of what `lazyfx batch` finished, one JSON file per model, for a run that resumes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from lazyfx.cli.artifact_files import replace_file
from lazyfx.shared.pass_spelling import spell

if TYPE_CHECKING:
    from lazyfx.shared.pass_specs import PassSpec


@dataclass(frozen=True)
class Record:
    """The result of one file.

    Attributes:
        file: Path below the input folder.
        digest: SHA-256 of the file's bytes, hex.
        passes: Spelling of the pipeline, and a digest of its rewrites if it has any.
        emit: What was written, or "".
        module_key: Hex of the compiled module's key.
        nodes_before: Nodes of the graph that was sent.
        nodes_after: Nodes of the resulting graph.
        cache: "hit", "miss" or "joined".
        recompiles_requested: Recompiles that passes requested.
        recompiles_performed: Recompiles that were performed.
        seconds: Time from reading the file to the last byte written.
        error: The error on one line, or "".
    """

    file: str
    digest: str
    passes: str
    emit: str
    module_key: str = ""
    nodes_before: int = 0
    nodes_after: int = 0
    cache: str = ""
    recompiles_requested: int = 0
    recompiles_performed: int = 0
    seconds: float = 0.0
    error: str = ""

    def matches(self, other: Record) -> bool:
        """Whether this is a success with the same bytes and the same work."""
        mine = (self.digest, self.passes, self.emit)
        return not self.error and mine == (other.digest, other.passes, other.emit)


def pipeline_identity(passes: Sequence[PassSpec]) -> str:
    """The identity of a pipeline: its spelling, and a digest of its rewrites.

    Raises:
        UnsupportedGraphError: A rewrite cannot be encoded.
    """
    spelling = spell(spec.spelled() for spec in passes)
    graphs = [graph for spec in passes for graph in spec.graphs()]
    if not graphs:
        return spelling
    # This imports torch, which is slow; --help does not need it.
    from lazyfx.shared import wire

    digests = b"".join(hashlib.sha256(wire.encode(graph).body).digest() for graph in graphs)
    return f"{spelling} rewrites sha256:{hashlib.sha256(digests).hexdigest()}"


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hex.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def read_record(path: Path) -> Record | None:
    """Read a record; None if it is missing or malformed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(data, dict) or set(data) != {field.name for field in fields(Record)}:
        return None
    return Record(**data)


def write_record(path: Path, record: Record) -> None:
    """Atomically write a record.

    Raises:
        OSError: The file cannot be written.
    """
    text = json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
