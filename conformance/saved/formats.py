"""The formats in which a client saves a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch.fx import GraphModule

from lazyfx.artifacts.python_files import python_file
from lazyfx.shared.formats.exported_program import export_module
from lazyfx.shared.formats.pickling import package_module, pickle_module
from lazyfx.shared.formats.torchscript import eager_copy, script_module
from lazyfx.shared.source.assembly import generate


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        suffix: Of its files; the loader reads them by it.
        save: Writes a module to a file. Raises LazyfxError if the format does not support it.
        imports: Modules that the function that reads it imports itself.
        structured: Whether what is loaded returns the same structure, not only the same tensors,
            and has the same code.
    """

    suffix: str
    save: Callable[[GraphModule, Path], object]
    imports: tuple[str, ...] = ()
    structured: bool = False


def _save_code(module: GraphModule, path: Path) -> None:
    python_file(module, generate(module), module, path.name).save(path)
    torch.save(module.state_dict(), path.with_suffix(".state"))


_EXPORT = ("torch.export", "torch._export.serde.serialize")

FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "pickle": Format(
            ".pickle", lambda m, path: path.write_bytes(pickle_module(m)), structured=True
        ),
        "package": Format(
            ".package",
            lambda m, path: path.write_bytes(package_module(m)),
            ("torch.package",),
            structured=True,
        ),
        "code": Format(".py", _save_code),
        "torchscript": Format(
            ".ts", lambda m, path: path.write_bytes(script_module(eager_copy(m)))
        ),
        "exported_program": Format(
            ".pt2", lambda m, path: path.write_bytes(export_module(m)), _EXPORT
        ),
    }
)
