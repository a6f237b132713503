"""A compiled graph as a Python file that needs only torch.

The file contains the checked source of the graph and its nested graphs, and a class `Module` that
is bound to tensors by name: those of the original model, or of its state_dict. Tensors that are in
neither (constants, tensors created by passes) are written to a second file next to it.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.fx import GraphModule

from lazyfx.artifacts.python_files.graph_state import State, read_state
from lazyfx.artifacts.python_files.program_text import write_text
from lazyfx.artifacts.python_files.value_expressions import REMEDY
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.formats.possible_writes import may_write, share_memory
from lazyfx.shared.source.assembly import GeneratedSource


@dataclass(frozen=True)
class PythonFile:
    """The files of a graph.

    Attributes:
        text: Python source.
        constants: The tensors that no state_dict has, by name, as written by `torch.save`; None if
            there are none.
    """

    text: str
    constants: bytes | None

    def save(self, path: Path) -> None:
        """Write the source to `path`, and the constants next to it.

        Raises:
            OSError: A file cannot be written.
        """
        if self.constants is not None:
            constants_path(path).write_bytes(self.constants)
        path.write_text(self.text, encoding="utf-8")


def constants_path(path: Path) -> Path:
    """Path of the constants of a source file: `model.constants.pt` for `model.py`."""
    return path.with_name(f"{path.stem}.constants.pt")


def python_file(
    module: GraphModule, source: GeneratedSource, original: GraphModule, name: str
) -> PythonFile:
    """Create a Python file for a compiled graph.

    Args:
        module: The compiled graph, built around the tensors of `original`.
        source: Its source and that of its nested graphs, checked against them.
        original: The original graph, whose names are those of the state.
        name: Name of the file, e.g. "model.py".

    Raises:
        UnsupportedGraphError: Something in it cannot be written as Python; names it.
    """
    state = read_state(module, original)
    _refuse_shared_writes(module, state, original)
    path = Path(name)
    held = constants_path(path).name if state.constants else ""
    text = write_text(module, source, state, path.stem, held)
    return PythonFile(text, _saved(state) if state.constants else None)


def _refuse_shared_writes(module: GraphModule, state: State, original: GraphModule) -> None:
    """Refuse writes to memory shared by both files: loaded from files, it is not shared."""
    kept = original.state_dict(keep_vars=True).values()
    if share_memory(kept, state.constants.values()) and may_write(module):
        raise UnsupportedGraphError(
            "the graph writes to tensors, and a tensor of its state shares memory with one that is "
            "in no state_dict",
            remedy=REMEDY,
        )


def _saved(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state.constants), buffer)
    return buffer.getvalue()
