"""Definitions for names in generated source that cannot be imported.

torch.fx imports the targets of a graph by module and name. Unbound tensor methods
(`torch.Tensor.set_`), NumPy calls wrapped by dynamo, and functions created during a trace cannot be
imported like this. They are defined by an expression over torch's own names, so that the source
loads in a process with torch alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lazyfx.shared.wire.targets import allow_table, canonical_callables, numpy_wrappers
from lazyfx.v1 import graph_pb2 as pb

_METHOD = "torch.Tensor."
_OF_DYNAMO = "torch._dynamo.utils."


def definitions(names: Mapping[str, object]) -> dict[str, str]:
    """The statements that define names that cannot be imported.

    torch.fx traces into functions when it loads a module; it is told not to trace these.

    Args:
        names: The values of names in generated source.
    """
    found = {}
    for name, value in names.items():
        statements = _statements(name, value)
        if statements is not None:
            found[name] = f"import torch\n{statements}\ntorch.fx.wrap({name!r})"
    return found


def _statements(name: str, value: Any) -> str | None:
    if not callable(value):
        return None
    if value is canonical_callables.lower_version_count_by_1:
        source = inspect.getsource(canonical_callables.lower_version_count_by_1)
        return f"{source}{name} = lower_version_count_by_1"
    wrapper = numpy_wrappers.expression(value)
    if wrapper is not None:
        return (
            f"import operator\nimport torch._numpy\nimport torch._dynamo.utils\n{name} = {wrapper}"
        )
    kind, known = allow_table.name_of(value) or (0, "")
    if kind != pb.TARGET_KIND_FUNCTION:
        return None
    if known.startswith(_OF_DYNAMO):
        return f"import torch._dynamo.utils\n{name} = {known}"
    # torch's Python functions are in modules, and are imported.
    importable = inspect.isfunction(value) or not known.startswith(_METHOD)
    return None if importable else f"{name} = {known}"
