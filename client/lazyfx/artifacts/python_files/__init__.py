"""A compiled graph as a file of Python that runs with torch alone.

The file holds the checked source of the graph and of those inside it, and a class `Module` that is
bound to tensors by their names: those of the model that was compiled, or of its state_dict. Tensors
that are in neither (constants, what passes made) go into a second file next to it.
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
    """What is written for a graph.

    Attributes:
        text: Python source.
        constants: What `torch.save` writes of the tensors that no state_dict has, by name; None
            where there are none.
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
    """A file of Python for a compiled graph.

    Args:
        module: The compiled graph, built around the tensors of `original`.
        source: Its source, checked against it, with that of the graphs inside it.
        original: The graph that was compiled; its names are those of the state.
        name: What the file will be called, e.g. "model.py".

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
    """What is in two files is loaded as two memories, and a write into one is not in the other."""
    kept = original.state_dict(keep_vars=True).values()
    if share_memory(kept, state.constants.values()) and may_write(module):
        raise UnsupportedGraphError(
            "the graph writes, and a tensor of its state shares memory with one that is in no "
            "state_dict",
            remedy=REMEDY,
        )


def _saved(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state.constants), buffer)
    return buffer.getvalue()
