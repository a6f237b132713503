"""Writes a GraphModule as a pickle or torch.package that loads without tracing, with torch alone.

`GraphModule.__reduce__` writes source, which torch runs and traces again on loading: a new tensor
or a random draw becomes one constant for all calls, writes are lost, branches and loops do not load
at all. Here the graph itself is written, as a sequence of calls of `Graph.create_node`, and
GraphModule generates its code from it as usual. So the loaded module has the same nodes, and
computes the same.
"""

from __future__ import annotations

import io
from typing import Any

from torch.fx import GraphModule
from torch.package.package_exporter import PackageExporter

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.formats.pickling.graphs_and_modules import ModuleReducer
from lazyfx.shared.formats.pickling.stored_tensors import TensorPickler

PACKAGE_NAME = "module"
RESOURCE_NAME = "module.pkl"


def pickle_module(module: GraphModule) -> bytes:
    """Pickle a module; no code is generated.

    Args:
        module: The module; its parameters are written unchanged, including meta tensors.

    Returns:
        Bytes for `pickle.loads` in any process with this version of torch.

    Raises:
        UnsupportedGraphError: Something in it cannot be pickled; names it.
    """
    buffer = io.BytesIO()
    form = ModuleReducer().reduce(module)
    try:
        TensorPickler(buffer, protocol=4).dump(form)
    except Exception as error:  # pickled objects raise errors of every kind
        raise _refusal("pickle", error) from error
    return buffer.getvalue()


def package_module(module: GraphModule) -> bytes:
    """Write a torch.package archive; no code is generated.

    Args:
        module: The module; its parameters are written unchanged.

    Returns:
        An archive; `PackageImporter(...).load_pickle("module", "module.pkl")` loads it.

    Raises:
        UnsupportedGraphError: Something in it cannot be packaged; says what.
    """
    buffer = io.BytesIO()
    form: Any = ModuleReducer().reduce(module)
    try:
        with PackageExporter(buffer) as exporter:
            # The caller must install the types of their own outputs (transformers' ModelOutput).
            exporter.extern("**")
            exporter.save_pickle(PACKAGE_NAME, RESOURCE_NAME, form)
    except Exception as error:  # pickled objects raise errors of every kind
        raise _refusal("package", error) from error
    return buffer.getvalue()


def _refusal(kind: str, error: Exception) -> UnsupportedGraphError:
    if isinstance(error, UnsupportedGraphError):
        return error
    reason = str(error).strip().partition("\n")[0][:500]
    return UnsupportedGraphError(
        f"the graph cannot be written as a {kind}: {type(error).__name__}: {reason}",
        remedy="save the graph (lazyfx.save_graph) and its state_dict, or an exported program "
        "(save_exported_program)",
    )
